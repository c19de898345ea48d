"""How alike the latents of a dictionary are: max over j ≠ i of cos(d_i, d_j), SAEBench's max_decoder_cosine_sim."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from stages.evaluate.intervals import Measure, over_seeds, resampled, weights
from stages.sae.sae import SAE

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
    draws = weights(sae.latents, np.random.default_rng(generator.initial_seed()))
    random = [
        shares(nearest(torch.randn(sae.decoder.shape, generator=generator).to(sae.decoder.device)))
        for _ in range(seeds)
    ]
    return {
        **{
            side: {name: _measure(values, draws) for name, values in shares(nearest(rows)).items()}
            for side, rows in (("decoder", sae.decoder), ("encoder", sae.directions_read()))
        },
        "controls": {"random": {name: over_seeds([float(one[name].mean()) for one in random]) for name in random[0]}},
    }


def _measure(values: Tensor, draws: np.ndarray) -> Measure:
    items = values.cpu().double().numpy()
    return resampled(items.mean(), draws @ items / len(items))
