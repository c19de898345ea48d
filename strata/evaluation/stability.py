"""Measure whether latents come again when the SAE is trained with another seed.

Decoder rows of the two SAEs are matched one to one so that the sum of their cosines is largest: the Hungarian
assignment (Paulo & Belrose 2025, "Sparse autoencoders trained on the same data learn different features").
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import normalize

from strata.evaluation.intervals import over_seeds
from strata.rows.batches import Rows
from strata.run import resume
from strata.sae.sae import SAE
from strata.training import training
from strata.training.knobs import Train
from strata.verdict.targets import Targets

SAME = 0.7  # the cosine from which on a latent counts as having come again


def matched(first: Tensor, second: Tensor) -> Tensor:
    """Match the rows of ``first`` and ``second``, (row, width) each; return the cosines of the pairs, (pair,).

    Each row of the one that has fewer rows is in a pair.
    """
    cosine = normalize(first.float(), dim=1) @ normalize(second.float(), dim=1).T
    rows, columns = linear_sum_assignment(cosine.cpu().numpy(), maximize=True)
    return cosine.cpu()[torch.from_numpy(rows), torch.from_numpy(columns)]


def stability(
    sae: SAE,
    activations: Rows,
    knobs: Train,
    targets: Targets,
    seeds: Sequence[int],
    generator: torch.Generator,
    work: Path | None = None,
) -> dict[str, Any]:
    """Train once with each of ``seeds``, as train would, and match ``sae`` with the results.

    ``cosine``: the mean over matched latents. ``again``: the share of them above SAME. The control is random directions
    of the same shape. The interval is the least and the most over ``seeds``. ``work``: a folder where unfinished
    trainings and the results are kept.
    """
    device = sae.b_dec.device

    def cosines(seed: int) -> dict[str, Tensor]:
        state = work / f"training-{seed}" if work else None
        fitted = training.train(activations, knobs, targets, seed, work=state, device=device)
        return {"cosines": matched(sae.decoder, fitted.best.decoder)}

    trained, random = [], []
    for seed in seeds:
        path = work / f"matched-{seed}.safetensors" if work else None
        trained.append(resume.once_tensors(path, partial(cosines, seed))["cosines"])
        random.append(matched(sae.decoder, torch.randn(sae.decoder.shape, generator=generator).to(device)))
    return {**_summary(trained), "controls": {"random": _summary(random)}}


def _summary(by_seed: Sequence[Tensor]) -> dict[str, Any]:
    """Summarise the cosines of each seed's pairs, (pair,) each."""
    return {
        "cosine": over_seeds([float(cosines.mean()) for cosines in by_seed]),
        "again": over_seeds([float((cosines > SAME).float().mean()) for cosines in by_seed]),
    }
