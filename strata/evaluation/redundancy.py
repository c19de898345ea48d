"""How alike the latents of a dictionary are: max over j ≠ i of cos(d_i, d_j), SAEBench's max_decoder_cosine_sim."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from strata.evaluation.intervals import drawn_means, over_seeds, resampled
from strata.sae.sae import SAE

ABOVE = 0.7, 0.9  # cosines from which on two directions count as near, and as the same
BLOCK = 1024


def nearest(directions: Tensor) -> Tensor:
    """(row,) the largest cosine of each of the ``directions`` (row, width) with another one; of zero rows 0."""
    unit = normalize(directions.float(), dim=1)
    found = []
    for start in range(0, len(unit), BLOCK):
        cosine = unit[start : start + BLOCK] @ unit.T
        cosine.diagonal(start).fill_(-1)
        found.append(cosine.amax(1))
    return torch.cat(found)


def shares(cosines: Tensor) -> dict[str, Tensor]:
    """(row,) what is averaged: the cosine itself, and whether it is above each of ABOVE."""
    return {"cosine": cosines, **{f"above_{bound}": (cosines > bound).float() for bound in ABOVE}}


@torch.inference_mode()
def redundancy(sae: SAE, seeds: int, generator: torch.Generator) -> dict[str, dict[str, Any]]:
    """Of decoder rows and of what latents read; the interval is a bootstrap over latents. The control: random
    directions of the same shape, least and most over ``seeds``."""
    sides = {"decoder": sae.decoder, "encoder": sae.directions_read()}
    found = {(side, name): v for side, rows in sides.items() for name, v in shares(nearest(rows)).items()}
    values = torch.stack(list(found.values()), 1).cpu().double().numpy()
    drawn = drawn_means(values, np.random.default_rng(generator.initial_seed()))
    measures = {key: resampled(values[:, at].mean(), drawn[:, at]) for at, key in enumerate(found)}
    random = [
        shares(nearest(torch.randn(sae.decoder.shape, generator=generator).to(sae.decoder.device)))
        for _ in range(seeds)
    ]
    return {
        **{side: {name: one for (own, name), one in measures.items() if own == side} for side in sides},
        "controls": {"random": {name: over_seeds([float(one[name].mean()) for one in random]) for name in random[0]}},
    }
