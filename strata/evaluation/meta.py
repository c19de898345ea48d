"""Measure how much of a dictionary is made of directions that several latents share, with an SAE of its decoder's rows.

The more of the rows' variance that SAE explains, the less are latents atoms (Leask et al. 2025, "Sparse autoencoders do
not find canonical units of analysis"; SAEBench's meta_structure).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from strata.corpus.read import SPLITS
from strata.evaluation import own
from strata.evaluation.intervals import over_seeds
from strata.measure.quality import Errors, compared
from strata.run import resume
from strata.sae.sae import SAE
from strata.training.knobs import Train

SHARE, ACTIVE, STEPS, BATCH = 0.25, 4, 1500, 1024  # as in SAEBench; the other knobs are train's


def meta_sae(directions: Tensor, knobs: Train, seed: int, steps: int = STEPS) -> SAE:
    """Train a batchtopk SAE on ``directions`` (latent, width), with a quarter as many latents.

    In the mean, ACTIVE of them are active on a row.
    """
    rows, batch = len(directions), min(BATCH, len(directions))
    splits: dict[str, tuple[int, int]] = dict.fromkeys(SPLITS, (0, rows))
    changes = {
        "rule": "batchtopk", "latents": max(round(SHARE * rows), ACTIVE), "k": ACTIVE, "batch_size": batch,
        "epochs": -(-steps // (rows // batch)), "validation_rows": BATCH,
    }  # fmt: skip
    return own.train(directions, splits, knobs, changes, seed).best


@torch.inference_mode()
def explained(sae: SAE, directions: Tensor) -> float:
    """Compute the explained share 1 − Σ‖d − d̂‖² / Σ‖d − mean‖² over ``directions`` (latent, width), which differ."""
    errors = Errors()
    errors.add(compared(directions, *sae.reconstruct(directions)))
    fvu = errors.fvu()
    assert fvu is not None
    return 1 - fvu


def meta(
    decoder: Tensor, knobs: Train, seeds: Sequence[int], generator: torch.Generator, work: Path | None = None
) -> dict[str, Any]:
    """Measure what is :func:`explained` of the decoder's rows, and of random directions of the same shape and lengths.

    ``decoder``: (latent, width). The interval is the least and the most over ``seeds`` of the meta-SAE. ``work``: a
    folder where the result of each training is kept. A small dictionary gets only the reason why there is no result.
    """
    if len(decoder) < 2 * ACTIVE:
        return {"why": f"a dictionary of {len(decoder)} latents is too small for an SAE of its rows"}

    lengths = decoder.norm(dim=1, keepdim=True)
    random = [
        lengths * normalize(torch.randn(decoder.shape, generator=generator), dim=1).to(decoder.device) for _ in seeds
    ]

    def explained_of(name: str, rows: Tensor, seed: int) -> float:
        path = work / f"{name}-{seed}.json" if work else None
        return resume.once_json(path, lambda: explained(meta_sae(rows, knobs, seed), rows))

    trained = [explained_of("decoder", decoder, seed) for seed in seeds]
    chance = [explained_of("random", rows, seed) for rows, seed in zip(random, seeds, strict=True)]
    return {
        "explained": over_seeds(trained),
        "controls": {"random": {"explained": over_seeds(chance)}},
    }
