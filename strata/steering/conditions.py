"""The directions that a model is steered along: a latent's own, and three that anyone might have tried instead."""

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
    """A model, the SAE of one of its layers, and the hook where the SAE reads."""

    lm: LanguageModel
    sae: SAE
    layer: int
    hook: Hook


@dataclass(frozen=True)
class Condition:
    """One way of steering.

    ``offset``: (width,) what strength 1 adds to an activation. ``latent`` is set for the latent's own direction only.
    That one goes through the SAE instead: strength 1 raises the latent's code by ``largest``, which does the same where
    the decoder is linear.
    """

    name: str
    offset: Tensor
    latent: int | None = None
    largest: float = 0.0

    def applied(self, place: Place, strength: Number) -> AbstractContextManager[None]:
        """Steer the model inside the block. ``strength``: a number, or a tensor (context,)."""
        if self.latent is not None:
            change = {self.latent: Add(strength * self.largest)}
            return steer(place.lm, place.sae, change, place.layer, place.hook)

        offset = self.offset.to(place.lm.device)
        factor = strength.to(offset.device)[:, None] if isinstance(strength, Tensor) else strength
        return push(place.lm, factor * offset, place.layer, place.hook)


def conditions(
    sae: SAE, latent: int, largest: float, others: NDArray[np.int64], difference: Tensor | None, random: torch.Generator
) -> list[Condition]:
    """Make the conditions for one latent: its own direction first, then the baselines, all of the same length.

    ``largest``: the code that counts as strength 1. ``others``: (n,) living latents, of which one is drawn.
    ``difference``: (width,) the mean activation where the latent is active minus that where it is not (DiffMean; Wu et
    al. 2025, AxBench, arXiv 2501.17148), or None.
    """
    decoder = sae.decoder.float().cpu()
    own = decoder[latent] * largest
    result = [Condition(LATENT, own, latent, largest)]

    others = others[others != latent]
    if len(others):
        drawn = int(torch.randint(len(others), (), generator=random))
        result.append(Condition("random latent", _as_long(decoder[int(others[drawn])], own)))
    result.append(Condition("random direction", _as_long(torch.randn(sae.width, generator=random), own)))
    if difference is not None:
        result.append(Condition("DiffMean", _as_long(difference, own)))
    return result


def _as_long(direction: Tensor, own: Tensor) -> Tensor:
    """Scale ``direction`` (width,) to the length of ``own`` (width,)."""
    return direction * (own.norm() / direction.norm().clamp(min=1e-30))


def difference(rows: Activations, latents: Latents, latent: int) -> Tensor | None:
    """Compute the mean of the training rows on which the latent is active minus that of the other rows, (width,).

    None where there are no rows of one kind.
    """
    first, end = rows.split("train")
    columns = latents.columns(latent, latent + 1)
    on = columns.rows[(columns.rows >= first) & (columns.rows < end)]
    off_count = end - first - len(on)
    if len(on) == 0 or off_count == 0:
        return None

    # The sum of the rows where it is active; that of all rows is known, so only blocks with such rows are read.
    total = torch.zeros(rows.width, dtype=torch.float64)
    for start in range(first, end, ROWS):
        on_in_block = on[(on >= start) & (on < start + ROWS)] - start
        if len(on_in_block):
            block = rows.read(start, min(start + ROWS, end))
            total += block[torch.from_numpy(on_in_block)].double().sum(0)

    all_rows = rows.mean.double() * (end - first)
    return (total / len(on) - (all_rows - total) / off_count).float()
