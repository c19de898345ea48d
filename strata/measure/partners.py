"""Give latents partners in another dictionary that fire as often, so that what is said of both can be compared."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strata.measure.matched import matched
from strata.sae.sae import SAE


class Firing(NamedTuple):
    """How each latent fires on some rows, (latent,): the share of the rows on which it does, and its largest code."""

    density: NDArray[np.float64]
    largest: NDArray[np.float32]


@torch.inference_mode()
def firing(sae: SAE, blocks: Iterable[Tensor]) -> Firing:
    """Measure how the latents fire on ``blocks`` of rows, (row, width) each."""
    rows, counts, largest = 0, torch.zeros(sae.latents, dtype=torch.long), torch.zeros(sae.latents)
    for block in blocks:
        codes = sae.encode(block.float())
        latents = codes.pattern.latents.cpu()
        rows += len(block)
        counts += torch.bincount(latents, minlength=sae.latents)
        largest.scatter_reduce_(0, latents, codes.values.float().cpu(), "amax")
    return Firing(counts.numpy() / max(rows, 1), largest.numpy())


def partners(density: NDArray[np.floating], chosen: list[int], twin: Firing, seed: int) -> dict[int, int]:
    """Give each ``chosen`` latent of the SAE a living latent of the twin that fires as often: latent -> twin's latent.

    ``density``: (latent,) of the SAE. A latent for which none is left has no entry.
    """
    # Both dictionaries one behind the other. Of the SAE only the chosen ones live, so that partners are the twin's.
    own = np.zeros(len(density))
    own[chosen] = density[chosen]
    found = matched(np.concatenate([own, twin.density]), chosen, np.random.default_rng([seed, len(density)]))
    return {j: int(other) - len(density) for j, other in zip(chosen, found, strict=True) if other >= 0}
