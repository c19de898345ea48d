"""Measure whether the same latents come again when the SAE is trained with another seed.

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

SAME = 0.7  # a latent counts as having come again if its cosine is above this


def matched(first: Tensor, second: Tensor) -> Tensor:
    """Match the rows of ``first`` with those of ``second``, (row, width) each, and return the cosines, (pair,).

    If one has fewer rows, all of these are in a pair, and some rows of the other are in none.
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
    """Train an SAE with each of ``seeds``, as the stage train would, and match its latents with those of ``sae``.

    Returns ``cosine``, the mean over the pairs of latents, and ``again``, the share of pairs with a cosine above SAME.
    The interval of each is the least and the most over ``seeds``. The control has random directions in place of the
    retrained decoder. ``generator`` draws them, and must be on the CPU. ``work``: a folder where unfinished trainings
    and the results are kept.
    """
    device = sae.b_dec.device

    def retrained_cosines(seed: int) -> dict[str, Tensor]:
        state = work / f"training-{seed}" if work else None
        fitted = training.train(activations, knobs, targets, seed, work=state, device=device)
        return {"cosines": matched(sae.decoder, fitted.best.decoder)}

    retrained, random = [], []  # (pair,) cosines, for each seed
    for seed in seeds:
        path = work / f"matched-{seed}.safetensors" if work else None
        retrained.append(resume.once_tensors(path, partial(retrained_cosines, seed))["cosines"])

        # Drawn also where the cosines were kept, so that a resumed run has the same control.
        directions = torch.randn(sae.decoder.shape, generator=generator).to(device)  # (latent, width)
        random.append(matched(sae.decoder, directions))
    return {**_summary(retrained), "controls": {"random": _summary(random)}}


def _summary(by_seed: Sequence[Tensor]) -> dict[str, Any]:
    """Summarise the cosines of the pairs, (pair,) for each seed."""
    return {
        "cosine": over_seeds([float(cosines.mean()) for cosines in by_seed]),
        "again": over_seeds([float((cosines > SAME).float().mean()) for cosines in by_seed]),
    }
