"""Test on a made-up hierarchy whether latents of children absorb the latent of their parent, with a rule and its knobs.

A parent is there on some rows; a child is there only where its parent is. One latent for the parent and one for each
child would describe that. But an SAE saves an active latent if the child's latent also writes the parent's direction
and the parent's latent stays silent (Chanin et al. 2024, "A is for absorption"). On a row with a child the parent
counts as absorbed where

* its latent, the one whose direction has the largest cosine with the parent's direction p, is silent, and
* another latent j writes p for it: cos(d_j, p) ≥ NEAR and f_j ⟨d_j, p⟩ ≥ MOST · ⟨x − b, p⟩ > 0, with the SAE's bias b.

These are SAEBench's bounds for full absorption, with the true direction in place of a probe's.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from strata.evaluation import own
from strata.evaluation.intervals import over_seeds
from strata.run import resume
from strata.sae.sae import SAE
from strata.training.knobs import Train

NEAR, MOST = 0.025, 0.4
WIDTH, CHILDREN, OTHERS = 32, 4, 16
PARENT, CHILD, OTHER = 0.4, 0.5, 0.1  # how often there is the parent; with it, a child; each of the others
ROWS, HELD_OUT = 40960, 4096
CHANGES = {
    "latents": 1 + CHILDREN + OTHERS,
    "k": int(PARENT * (1 + CHILD) + OTHERS * OTHER),
    "batch_size": 512,
    "validation_rows": HELD_OUT,
    "auxk_latents": CHILDREN,
}


class Hierarchy(NamedTuple):
    """Rows ``x`` (row, width), the ``parent``'s direction (width,), and whether a row has a ``child``, (row,)."""

    x: Tensor
    parent: Tensor
    child: Tensor


def hierarchy(random: torch.Generator, rows: int = ROWS) -> Hierarchy:
    """Draw rows of the made-up hierarchy.

    A row is the sum of the directions that are active on it, each times 0.8 to 1.2. All directions are orthonormal: the
    parent, its children, and others that belong to no parent.
    """
    atoms = torch.linalg.qr(torch.randn(WIDTH, 1 + CHILDREN + OTHERS, generator=random)).Q.T
    active = torch.zeros(rows, len(atoms), dtype=torch.bool)
    draws = torch.rand(rows, 2 + OTHERS, generator=random)

    active[:, 0] = draws[:, 0] < PARENT
    child = active[:, 0] & (draws[:, 1] < CHILD)
    active[torch.arange(rows), 1 + torch.randint(CHILDREN, (rows,), generator=random)] = child
    active[:, 1 + CHILDREN :] = draws[:, 2:] < OTHER

    sizes = active * (0.8 + 0.4 * torch.rand(active.shape, generator=random))
    return Hierarchy(sizes @ atoms, atoms[0], child)


@torch.inference_mode()
def absorbed(sae: SAE, x: Tensor, parent: Tensor, mains: Sequence[int]) -> dict[str, float]:
    """Measure on which share of the rows ``x`` (row, width), which all have the parent, it is absorbed or lost.

    ``absorbed``: its latents ``mains`` are silent, and another writes it. ``lost``: they are silent, and none does.
    ``parent``: (width,), of length 1. What a latent writes along it is held against what all of them have to write: the
    projection of x without the SAE's own bias.
    """
    codes = sae.encode(x)
    f = codes.pattern.dense(codes.values)  # (row, latent)
    projection = (x - sae.b_dec) @ parent

    # (row, latent) how far the other latents write along the parent's direction.
    near = normalize(sae.decoder, dim=1) @ parent >= NEAR
    writes = f * (sae.decoder @ parent) * near
    writes[:, mains] = 0

    silent = (f[:, mains] == 0).all(1)
    carried = (projection > 0) & (writes.amax(1) >= MOST * projection)
    return {"absorbed": float((silent & carried).float().mean()), "lost": float((silent & ~carried).float().mean())}


def nearest(sae: SAE, direction: Tensor) -> list[int]:
    """Return the latent whose direction has the largest cosine with ``direction`` (width,), in a list."""
    return [int((normalize(sae.decoder, dim=1) @ direction).argmax())]


def absorption(knobs: Train, seeds: Sequence[int], work: Path | None = None) -> dict[str, Any]:
    """Train an SAE on the hierarchy with the rule of ``knobs``, once for each of ``seeds``, and measure absorption.

    The seeds also draw the rows. The SAE has as many latents as there are directions; k is the mean number of
    directions on a row, rounded down. The control is the SAE before training; the intervals are the least and the most
    over seeds. ``work``: a folder where the result of each seed is kept.
    """

    def measure(seed: int) -> dict[str, dict[str, float]]:
        data = hierarchy(torch.Generator().manual_seed(seed))
        test_start = ROWS - HELD_OUT
        splits = {
            "train": (0, test_start - HELD_OUT),
            "validation": (test_start - HELD_OUT, test_start),
            "test": (test_start, ROWS),
        }
        fitted = own.train(data.x, splits, knobs, CHANGES, seed)

        with_child = data.x[test_start:][data.child[test_start:]]
        saes = {"trained": fitted.best, "untrained": fitted.untrained}
        return {name: absorbed(sae, with_child, data.parent, nearest(sae, data.parent)) for name, sae in saes.items()}

    results = [resume.once_json(work / f"{seed}.json" if work else None, partial(measure, seed)) for seed in seeds]
    trained, untrained = ([by_sae[name] for by_sae in results] for name in ("trained", "untrained"))
    return {**_over(trained), "controls": {"untrained": _over(untrained)}}


def _over(results: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Summarise each share over the seeds."""
    return {name: over_seeds([result[name] for result in results]) for name in results[0]}
