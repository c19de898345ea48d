"""How much of a dictionary is directions that several latents share: an SAE of its decoder's rows (Leask et al. 2025,
"Sparse autoencoders do not find canonical units of analysis"; SAEBench's meta_structure). The more of their variance it
explains, the less are latents atoms."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from strata.corpus.read import SPLITS
from strata.evaluation import own
from strata.evaluation.intervals import over_seeds
from strata.measure.metrics import Errors, compared
from strata.run import resume
from strata.sae.knobs import Train
from strata.sae.sae import SAE

SHARE, ACTIVE, STEPS, BATCH = 0.25, 4, 1500, 1024  # as in SAEBench; the other knobs are train's


def meta_sae(directions: Tensor, knobs: Train, seed: int, steps: int = STEPS) -> SAE:
    """A batchtopk SAE of ``directions`` (latent, width) with a quarter of the latents, of which ACTIVE are active on a
    row, the mean over all of them."""
    rows, batch = len(directions), min(BATCH, len(directions))
    splits: dict[str, tuple[int, int]] = dict.fromkeys(SPLITS, (0, rows))
    changes = {
        "rule": "batchtopk", "latents": max(round(SHARE * rows), ACTIVE), "k": ACTIVE, "batch_size": batch,
        "epochs": -(-steps // (rows // batch)), "validation_rows": BATCH,
    }  # fmt: skip
    return own.train(directions, splits, knobs, changes, seed)[0].best


@torch.inference_mode()
def explained(sae: SAE, directions: Tensor) -> float:
    """1 − Σ‖d − d̂‖² / Σ‖d − mean‖² over all ``directions`` (latent, width), no two of them alike."""
    errors = Errors()
    errors.add(compared(directions, *sae.reconstruct(directions)))
    fvu = errors.fvu()
    assert fvu is not None
    return 1 - fvu


def meta(
    decoder: Tensor, knobs: Train, seeds: Sequence[int], generator: torch.Generator, work: Path | None = None
) -> dict[str, Any]:
    """What is :func:`explained` of the decoder's rows, and of random directions of the same shape; the interval is the
    least and the most over ``seeds`` of the meta-SAE. ``work``: where what came of each training is kept."""
    if len(decoder) < 2 * ACTIVE:
        return {"why": f"a dictionary of {len(decoder)} latents is too small for an SAE of its rows"}
    lengths = decoder.norm(dim=1, keepdim=True)
    random = [
        lengths * normalize(torch.randn(decoder.shape, generator=generator), dim=1).to(decoder.device) for _ in seeds
    ]

    def of(name: str, rows: Tensor, seed: int) -> float:
        path = work / f"{name}-{seed}.json" if work else None
        return resume.once_json(path, lambda: explained(meta_sae(rows, knobs, seed), rows))

    found = [of("decoder", decoder, seed) for seed in seeds]
    chance = [of("random", rows, seed) for rows, seed in zip(random, seeds, strict=True)]
    return {
        "explained": over_seeds(found),
        "controls": {"random": {"explained": over_seeds(chance)}},
    }
