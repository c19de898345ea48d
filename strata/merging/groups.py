"""Which latents become one, and how much of each: the merge matrix M, its rows one-hot up to a share.

A group's code is Σ share × code of its members. With every share 1 that is their plain sum; better is the cosine of a
member's direction with the group's, for what a weak member writes that the group's direction cannot say is lost
anyway, and should not be written wrongly.
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
    """``of``: (latent,) int64, the merged latent that each counts towards, or NO_GROUP. ``shares``: (latent,)."""

    of: Ints
    shares: Floats

    @property
    def count(self) -> int:
        return int(self.of.max()) + 1

    def members(self) -> list[Ints]:
        """The latents of each group, ascending."""
        inside = np.flatnonzero(self.of >= 0)
        order = inside[np.argsort(self.of[inside], kind="stable")]
        return np.split(order, np.searchsorted(self.of[order], np.arange(1, self.count)))

    def table(self) -> dict[str, Any]:
        """The columns of `groups.parquet` (see `read.py`): a group's latents stand together, those of none last."""
        order = np.lexsort((np.arange(len(self.of)), np.where(self.of < 0, self.count, self.of)))
        inside = self.of[order] >= 0
        merged = pa.array(self.of[order], pa.int32(), mask=~inside)
        return {"latent": order, "merged": merged, "share": np.where(inside, self.shares[order], 0.0)}

    def largest(self, most: int) -> list[dict[str, Any]]:
        """The groups of more than one latent, the largest first, at most ``most``: merged and its latents."""
        groups = [(number, latents) for number, latents in enumerate(self.members()) if len(latents) > 1]
        groups.sort(key=lambda group: (-len(group[1]), group[0]))
        return [{"merged": number, "latents": latents.tolist()} for number, latents in groups[:most]]

    @property
    def permutes(self) -> bool:
        """Whether each merged latent is one latent, unscaled: the decoder needs no refit."""
        inside = self.of >= 0
        return self.count == inside.sum() and bool((self.shares[inside] == 1).all())


def alone(latents: int, kept: Ints) -> Groups:
    """Each of the ``kept`` latents by itself; the others are dropped."""
    of = np.full(latents, NO_GROUP)
    of[kept] = np.arange(len(kept))
    return Groups(of, np.ones(latents))


def strongest(moments: Moments, decoder: Floats, count: int) -> Groups:
    """The baseline: the ``count`` latents that write most, each alone; the rest are dropped."""
    return alone(len(decoder), np.sort(np.argsort(-energy(moments, decoder), kind="stable")[:count]))


def energy(moments: Moments, decoder: Floats) -> Floats:
    """(latent,) Σz² ‖d‖² over the training rows: what each latent writes."""
    return np.diag(moments.gram) * (decoder**2).sum(1)


def families(clusters: Clusters, count: int | None) -> Ints:
    """(latent,) the cluster of each: cluster's own, or its tree cut into ``count``. Noise stays alone."""
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
    """Merging by loss, for each of ``counts``: leaders, and every other latent follows one, of its cluster if it can.

    Leaders are taken one at a time, each the latent that loses most where the earlier ones of its cluster stand for it:
    energy × (1 − cos²), cos the largest of its direction with theirs, at least 0. A follower joins the nearest; without
    one at an acute angle in its cluster the nearest of all, or it is dropped. ``labels``: (latent,) the cluster of
    each, negative of the dead.
    """
    size = np.linalg.norm(decoder, axis=1)
    unit = (decoder / np.maximum(size, 1e-30)[:, None]).astype(np.float32)
    loss, all_energy = energy(moments, decoder), energy(moments, decoder)
    loss[labels < 0] = -1
    leaders, nearest = [], np.zeros(len(decoder))
    for _ in range(max(counts, default=0)):
        leader = int(loss.argmax())
        family = np.flatnonzero(labels == labels[leader])
        nearest[family] = np.maximum(nearest[family], unit[family] @ unit[leader])
        loss[family] = np.minimum(loss[family], all_energy[family] * (1 - nearest[family].clip(0, 1) ** 2))
        loss[leader] = -1
        leaders.append(leader)
    return [_followed(unit, labels, np.sort(leaders[:count])) for count in counts]


def _followed(unit: NDArray[np.float32], labels: Ints, leaders: Ints) -> Groups:
    of, best = np.full(len(unit), NO_GROUP), np.zeros(len(unit))
    for label in np.unique(labels[leaders]):
        mine, family = np.flatnonzero(labels[leaders] == label), np.flatnonzero(labels == label)
        cosine = unit[family] @ unit[leaders[mine]].T
        best[family], of[family] = cosine.max(1), mine[cosine.argmax(1)]
    lost = np.flatnonzero((best <= 0) & (labels >= 0))
    cosine = unit[lost] @ unit[leaders].T
    best[lost], of[lost] = cosine.max(1), cosine.argmax(1)
    of[leaders], best[leaders] = np.arange(len(leaders)), 1
    of[best <= 0] = NO_GROUP
    return Groups(numbered(of), np.where(of < 0, 0.0, 1.0))


def whole(labels: Ints) -> Groups:
    """Each cluster one latent."""
    return Groups(labels, np.where(labels < 0, 0.0, 1.0))


def weighted(groups: Groups, moments: Moments, decoder: Floats) -> Groups:
    """The same groups with shares that lose least: of each group, the best single direction for what it writes.

    Members write with energies e_j along directions u_j, as if never on the same row; the direction v that loses least,
    Σ e_j (1 − (u_j · v)²), is the first right singular vector of the rows √e_j u_j, and a member's share is
    ‖d_j‖ u_j · v, at least 0, over that of the group's strongest: a group of one has share 1.
    """
    shares, all_energy = np.where(groups.of < 0, 0.0, 1.0), energy(moments, decoder)
    for members in groups.members():
        if len(members) > 1:
            rows = np.sqrt(all_energy[members] + 1e-30)[:, None] * _unit(decoder[members])
            v = np.linalg.eigh(rows @ rows.T)[1][:, -1] @ rows  # the first right singular vector, up to its length
            found = decoder[members] @ v
            strongest = int(all_energy[members].argmax())
            shares[members] = np.maximum(found / found[strongest], 0)
    return Groups(groups.of, shares)


def _unit(rows: Floats) -> Floats:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
