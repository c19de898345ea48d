"""What the model is pushed along: a latent's direction, and three that anyone might have tried instead."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strata.interpretation.read import Latents
from strata.lm.model import Hook, LanguageModel
from strata.rows.shards import Activations
from strata.sae.sae import SAE
from strata.steering.steer import Add, Number, push, steer

LATENT = "latent"
ROWS = 4096  # activations summed at a time


@dataclass(frozen=True)
class Place:
    """A model, the SAE of one of its layers, and where that reads."""

    lm: LanguageModel
    sae: SAE
    layer: int
    hook: Hook


@dataclass(frozen=True)
class Condition:
    """``offset``: (width,) what strength 1 adds to an activation. The latent's own goes through the SAE instead, for
    which its code rises by ``largest``: the same where the decoder is linear."""

    name: str
    offset: Tensor
    latent: int | None = None
    largest: float = 0.0

    def applied(self, place: Place, strength: Number) -> AbstractContextManager[None]:
        """Inside it the model is steered; ``strength``: a number, or (context,)."""
        if self.latent is not None:
            change = {self.latent: Add(strength * self.largest)}
            return steer(place.lm, place.sae, change, place.layer, place.hook)
        offset = self.offset.to(place.lm.device)
        each = strength.to(offset.device)[:, None] if isinstance(strength, Tensor) else strength
        return push(place.lm, each * offset, place.layer, place.hook)


def conditions(
    sae: SAE, latent: int, largest: float, others: NDArray[np.int64], difference: Tensor | None, random: torch.Generator
) -> list[Condition]:
    """The latent's own direction first, then the baselines, all of the same length.

    ``largest``: the code that is strength 1. ``others``: living latents, one of which is drawn. ``difference``: mean
    activation with the latent on minus off (DiffMean; Wu et al. 2025, AxBench, arXiv 2501.17148), None without any.
    """
    decoder = sae.decoder.float().cpu()
    own = decoder[latent] * largest
    others = others[others != latent]
    found = [Condition(LATENT, own, latent, largest)]
    if len(others):
        drawn = int(torch.randint(len(others), (), generator=random))
        found.append(Condition("random latent", _as_long(decoder[int(others[drawn])], own)))
    found.append(Condition("random direction", _as_long(torch.randn(sae.width, generator=random), own)))
    if difference is not None:
        found.append(Condition("DiffMean", _as_long(difference, own)))
    return found


def _as_long(direction: Tensor, own: Tensor) -> Tensor:
    return direction * (own.norm() / direction.norm().clamp(min=1e-30))


def difference(rows: Activations, latents: Latents, latent: int) -> Tensor | None:
    """(width,) mean of the training rows on which the latent is active, minus that of the others; None without both."""
    first, end = rows.split("train")
    columns = latents.columns(latent, latent + 1)
    on = columns.rows[(columns.rows >= first) & (columns.rows < end)]
    off = end - first - len(on)
    if len(on) == 0 or off == 0:
        return None
    total = torch.zeros(rows.width, dtype=torch.float64)
    for start in range(first, end, ROWS):
        here = on[(on >= start) & (on < start + ROWS)] - start
        if len(here):
            block = rows.read(start, min(start + ROWS, end))
            total += block[torch.from_numpy(here)].double().sum(0)
    everything = rows.mean.double() * (end - first)
    return (total / len(on) - (everything - total) / off).float()
