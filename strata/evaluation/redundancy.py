"""Measure how alike a dictionary's latents are: max over j ≠ i of cos(d_i, d_j), SAEBench's max_decoder_cosine_sim."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from strata.evaluation.intervals import drawn_means, over_seeds, resampled
from strata.sae.sae import SAE

ABOVE = 0.7, 0.9  # above the first cosine two directions count as near, above the second as the same
BLOCK = 1024


def nearest(directions: Tensor) -> Tensor:
    """Compute the largest cosine of each of ``directions`` (row, width) with another, (row,); 0 for a row of zeros."""
    unit = normalize(directions.float(), dim=1)
    largest = []
    for start in range(0, len(unit), BLOCK):
        cosine = unit[start : start + BLOCK] @ unit.T
        cosine.diagonal(start).fill_(-1)  # not with itself
        largest.append(cosine.amax(1))
    return torch.cat(largest)


def shares(cosines: Tensor) -> dict[str, Tensor]:
    """Turn ``cosines`` (row,) into what is averaged, (row,) each: the cosine, and whether it is above each bound."""
    return {"cosine": cosines, **{f"above_{bound}": (cosines > bound).float() for bound in ABOVE}}


@torch.inference_mode()
def redundancy(sae: SAE, seeds: int, generator: torch.Generator) -> dict[str, dict[str, Any]]:
    """Measure decoder rows, and the directions that latents read. The interval is a bootstrap over latents.

    The control is random directions of the same shape, with the least and the most over ``seeds``.
    """
    sides = {"decoder": sae.decoder, "encoder": sae.directions_read()}
    by_latent = {(side, name): v for side, rows in sides.items() for name, v in shares(nearest(rows)).items()}

    # All measures are drawn together: (latent, measure).
    values = torch.stack(list(by_latent.values()), 1).cpu().double().numpy()
    drawn = drawn_means(values, np.random.default_rng(generator.initial_seed()))
    measures = {key: resampled(values[:, at].mean(), drawn[:, at]) for at, key in enumerate(by_latent)}

    random = [
        shares(nearest(torch.randn(sae.decoder.shape, generator=generator).to(sae.decoder.device)))
        for _ in range(seeds)
    ]
    chance = {name: over_seeds([float(draw[name].mean()) for draw in random]) for name in random[0]}
    return {
        **{side: {name: measure for (own, name), measure in measures.items() if own == side} for side in sides},
        "controls": {"random": chance},
    }
