"""Decide which latents become one, and how much of each counts.

This is the merge matrix M (latent, group), which has one entry a row at most: the latent's share. A group's code is
Σ share × code of its members. With every share 1 it is their plain sum. The better share is the cosine of a member's
direction with the group's direction: what a weak member writes across the group's direction is lost in any case, and
should not be written wrongly.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from strata.families.read import DEAD, Clusters, cut, numbered
from strata.merging.moments import Moments
from strata.run.door import BadInput
from strata.sae.sae import NO_GROUP

Ints, Floats = NDArray[np.int64], NDArray[np.float64]


@dataclass(frozen=True)
class Groups:
    """A merging.

    ``of``: (latent,) int64, the merged latent that each latent counts towards, or NO_GROUP. ``shares``: (latent,) how
    much of its code counts.
    """

    of: Ints
    shares: Floats

    @property
    def count(self) -> int:
        return int(self.of.max()) + 1

    def members(self) -> list[Ints]:
        """List the latents of each group, in rising order."""
        inside = np.flatnonzero(self.of >= 0)
        order = inside[np.argsort(self.of[inside], kind="stable")]
        return np.split(order, np.searchsorted(self.of[order], np.arange(1, self.count)))

    def table(self) -> dict[str, Any]:
        """Make the columns of `groups.parquet` (see `read.py`), sorted by group; latents without a group come last."""
        order = np.lexsort((np.arange(len(self.of)), np.where(self.of < 0, self.count, self.of)))
        inside = self.of[order] >= 0
        merged = pa.array(self.of[order], pa.int32(), mask=~inside)
        return {"latent": order, "merged": merged, "share": np.where(inside, self.shares[order], 0.0)}

    def largest(self, most: int) -> list[dict[str, Any]]:
        """List at most ``most`` groups of more than one latent, the largest first: merged latent and members."""
        groups = [(number, latents) for number, latents in enumerate(self.members()) if len(latents) > 1]
        groups.sort(key=lambda group: (-len(group[1]), group[0]))
        return [{"merged": number, "latents": latents.tolist()} for number, latents in groups[:most]]

    @property
    def permutes(self) -> bool:
        """Whether each merged latent is one latent, unscaled. Then the decoder needs no refit."""
        inside = self.of >= 0
        return self.count == inside.sum() and bool((self.shares[inside] == 1).all())


def alone(latents: int, kept: Ints) -> Groups:
    """Put each of the ``kept`` latents in a group of its own; drop the others. ``latents``: how many there are."""
    of = np.full(latents, NO_GROUP)
    of[kept] = np.arange(len(kept))
    return Groups(of, np.ones(latents))


def strongest(moments: Moments, decoder: Floats, count: int) -> Groups:
    """Make the baseline: keep the ``count`` latents that write most, each alone, and drop the rest."""
    return alone(len(decoder), np.sort(np.argsort(-energy(moments, decoder), kind="stable")[:count]))


def energy(moments: Moments, decoder: Floats) -> Floats:
    """Compute what each latent writes, Σz² ‖d‖² over the training rows, (latent,)."""
    return np.diag(moments.gram) * (decoder**2).sum(1)


def families(clusters: Clusters, count: int | None) -> Ints:
    """Return the cluster of each latent, (latent,): the stage's own clusters, or its tree cut into ``count``.

    Each noise latent becomes a cluster of its own; dead latents have a negative label. Raises BadInput if ``count`` is
    above the number of living latents, or if there is no tree to cut.
    """
    living = clusters.living
    if count is not None and count > len(living):
        raise BadInput(f"merge cannot make {count} latents of {len(living)} living ones; lower merge.latents")
    labels = clusters.labels.copy()
    if count is not None:
        if clusters.tree is None:
            raise BadInput(
                f"{clusters.folder} has no tree to cut, because cluster.method is not agglomerative; set merge.by: "
                "loss, or merge.latents: null for cluster's own clusters"
            )
        labels[living] = cut(clusters.tree, count)

    noise = np.flatnonzero((labels < 0) & (clusters.labels != DEAD))
    labels[noise] = labels.max() + 1 + np.arange(len(noise))
    return numbered(labels)


def led(moments: Moments, decoder: Floats, labels: Ints, counts: list[int]) -> list[Groups]:
    """Merge by loss, once for each of ``counts``. There are leaders; every other latent follows one of them.

    Leaders are taken one at a time: always the latent that loses most if the earlier leaders of its cluster stand for
    it. It loses energy × (1 − cos²), where cos is the largest cosine of its direction with theirs, at least 0. Then
    each other latent joins the nearest leader of its cluster. Where none is at an acute angle it joins the nearest of
    all leaders; where that is at no acute angle either, it is dropped.

    ``decoder``: (latent, width). ``labels``: (latent,) the cluster of each, negative for dead latents.
    """
    size = np.linalg.norm(decoder, axis=1)
    unit = (decoder / np.maximum(size, 1e-30)[:, None]).astype(np.float32)

    # What each latent loses so far; -1 for those that cannot lead: the dead, and the leaders themselves.
    loss, all_energy = energy(moments, decoder), energy(moments, decoder)
    loss[labels < 0] = -1
    leaders, nearest = [], np.zeros(len(decoder))  # nearest: the largest cosine with a leader of the cluster
    for _ in range(max(counts, default=0)):
        leader = int(loss.argmax())
        family = np.flatnonzero(labels == labels[leader])
        nearest[family] = np.maximum(nearest[family], unit[family] @ unit[leader])
        loss[family] = np.minimum(loss[family], all_energy[family] * (1 - nearest[family].clip(0, 1) ** 2))
        loss[leader] = -1
        leaders.append(leader)
    return [_followed(unit, labels, np.sort(leaders[:count])) for count in counts]


def _followed(unit: NDArray[np.float32], labels: Ints, leaders: Ints) -> Groups:
    """Group each latent with the leader that it follows. ``unit``: (latent, width). ``leaders``: in rising order."""
    # First, the nearest leader of the same cluster. ``best``: the cosine with it.
    of, best = np.full(len(unit), NO_GROUP), np.zeros(len(unit))
    for label in np.unique(labels[leaders]):
        cluster_leaders, family = np.flatnonzero(labels[leaders] == label), np.flatnonzero(labels == label)
        cosine = unit[family] @ unit[leaders[cluster_leaders]].T
        best[family], of[family] = cosine.max(1), cluster_leaders[cosine.argmax(1)]

    # Then, for those without one at an acute angle, the nearest of all leaders.
    lost = np.flatnonzero((best <= 0) & (labels >= 0))
    cosine = unit[lost] @ unit[leaders].T
    best[lost], of[lost] = cosine.max(1), cosine.argmax(1)

    of[leaders], best[leaders] = np.arange(len(leaders)), 1
    of[best <= 0] = NO_GROUP
    return Groups(numbered(of), np.where(of < 0, 0.0, 1.0))


def whole(labels: Ints) -> Groups:
    """Merge each cluster into one latent, with shares of 1. ``labels``: (latent,) the cluster of each, or negative."""
    return Groups(labels, np.where(labels < 0, 0.0, 1.0))


def weighted(groups: Groups, moments: Moments, decoder: Floats) -> Groups:
    """Give the groups the shares that lose least: those of the best single direction for what each group writes.

    Suppose that members write with energies e_j along directions u_j, and never on the same row. The direction v that
    loses least, Σ e_j (1 − (u_j · v)²), is the first right singular vector of the rows √e_j u_j. A member's share is
    ‖d_j‖ u_j · v, at least 0, divided by that of the group's strongest member. So a group of one has share 1.

    ``decoder``: (latent, width).
    """
    shares, all_energy = np.where(groups.of < 0, 0.0, 1.0), energy(moments, decoder)
    for members in groups.members():
        if len(members) > 1:
            rows = np.sqrt(all_energy[members] + 1e-30)[:, None] * _unit(decoder[members])
            v = np.linalg.eigh(rows @ rows.T)[1][:, -1] @ rows  # the first right singular vector, up to its length
            along = decoder[members] @ v
            strongest = int(all_energy[members].argmax())
            shares[members] = np.maximum(along / along[strongest], 0)
    return Groups(groups.of, shares)


def _unit(rows: Floats) -> Floats:
    """Scale rows (row, column) to length 1; a row of zeros stays as it is."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
