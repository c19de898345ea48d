"""Whether latents of children absorb their parent's: a test of a rule and its knobs on a hierarchy that is made up.

A parent is there on some rows, and a child only where its parent is. One latent for the parent and one for each child
says that; but an SAE saves an active latent where the child's latent writes the parent's direction too and the parent's
latent is silent (Chanin et al. 2024, "A is for absorption"). On a row with a child the parent counts as absorbed where

* its latent, the one whose direction has the largest cosine with the parent's, p, is silent, and
* another latent j writes p for it: cos(d_j, p) ≥ NEAR and f_j ⟨d_j, p⟩ ≥ MOST · ⟨x, p⟩,

which are SAEBench's bounds for full absorption, with the true direction in place of a probe's.
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
from strata.sae.knobs import Train
from strata.sae.sae import SAE

NEAR, MOST = 0.025, 0.4
WIDTH, CHILDREN, OTHERS = 32, 4, 16
PARENT, CHILD, OTHER = 0.4, 0.5, 0.1  # how often there is a parent; with it, one of its children; each of the others
ROWS, HELD_OUT = 40960, 4096
CHANGES = {
    "latents": 1 + CHILDREN + OTHERS,
    "k": int(PARENT * (1 + CHILD) + OTHERS * OTHER),
    "batch_size": 512,
    "validation_rows": HELD_OUT,
    "auxk_latents": CHILDREN,
}


class Hierarchy(NamedTuple):
    """``x``: (row, width). ``parent``: (width,) its direction. ``child``: (row,) whether there is a child."""

    x: Tensor
    parent: Tensor
    child: Tensor


def hierarchy(random: torch.Generator, rows: int = ROWS) -> Hierarchy:
    """Sums of orthonormal directions, each times 0.8 to 1.2: the parent, its children and others that have none."""
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
def absorbed(sae: SAE, x: Tensor, parent: Tensor) -> dict[str, float]:
    """Of the rows ``x`` (row, width), all with a child, the share where the parent is ``absorbed``, and where it is
    ``lost``: its latent silent, and none writes it. ``parent``: (width,), of length 1."""
    codes = sae.encode(x)
    f = codes.pattern.dense(codes.values)
    cosine = normalize(sae.decoder, dim=1) @ parent
    main = int(cosine.argmax())
    writes = f * (sae.decoder @ parent) * (cosine >= NEAR)
    writes[:, main] = 0
    silent = f[:, main] == 0
    carried = writes.amax(1) >= MOST * (x @ parent)
    return {"absorbed": float((silent & carried).float().mean()), "lost": float((silent & ~carried).float().mean())}


def absorption(knobs: Train, seeds: Sequence[int], work: Path | None = None) -> dict[str, Any]:
    """Train an SAE of as many latents as there are directions by ``knobs``' rule, once for each of ``seeds``, which
    also draw the rows; k is the mean number of directions on a row, rounded down. The interval is the least and the
    most over ``seeds``; the control is the SAE before training. ``work``: where what came of each seed is kept."""

    def of(seed: int) -> dict[str, dict[str, float]]:
        made = hierarchy(torch.Generator().manual_seed(seed))
        first = ROWS - HELD_OUT
        splits = {"train": (0, first - HELD_OUT), "validation": (first - HELD_OUT, first), "test": (first, ROWS)}
        fitted, untrained = own.train(made.x, splits, knobs, CHANGES, seed)
        held_out = made.x[first:][made.child[first:]]
        saes = {"trained": fitted.best, "untrained": untrained}
        return {name: absorbed(sae, held_out, made.parent) for name, sae in saes.items()}

    found = [resume.once_json(work / f"{seed}.json" if work else None, partial(of, seed)) for seed in seeds]
    trained, untrained = ([by_seed[name] for by_seed in found] for name in ("trained", "untrained"))
    return {**_over(trained), "controls": {"untrained": _over(untrained)}}


def _over(found: Sequence[dict[str, float]]) -> dict[str, Any]:
    return {name: over_seeds([one[name] for one in found]) for name in found[0]}
