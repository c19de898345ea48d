"""Means over the tokens of a document: what a document is to a probe."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from strata.rows.batches import Rows, blocks
from strata.sae.sae import SAE
from strata.sae.training.training import with_threshold

Floats = NDArray[np.float32]


def places(row_document: NDArray[np.integer], chosen: NDArray[np.integer], tokens: int | None) -> Tensor:
    """(row,) where in ``chosen`` a row's document stands; -1 for rows of others, and of those after the first
    ``tokens`` of a document.

    ``row_document``: (row,) of all stored rows in their order, those of a document beside each other; ``chosen``: in
    rising order, each with rows.
    """
    place = np.searchsorted(chosen, row_document).clip(max=len(chosen) - 1)
    starts = np.flatnonzero(np.diff(row_document, prepend=-1))
    nth = np.arange(len(row_document)) - np.repeat(starts, np.diff(starts, append=len(row_document)))
    kept = (chosen[place] == row_document) & (nth < (tokens or len(row_document)))
    return torch.from_numpy(np.where(kept, place, -1))


@dataclass(frozen=True)
class Parts:
    """Rows (row, width) in float32 that have a ``place``, and their places, block by block."""

    activations: Rows
    place: Tensor
    device: torch.device

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        first = 0
        for block in blocks(self.activations, 0, len(self.place), self.device):
            at = self.place[first : first + len(block)].to(self.device)
            first += len(block)
            if (kept := at >= 0).any():
                yield block[kept].float(), at[kept]


@torch.inference_mode()
def pooled(saes: Mapping[str, SAE], parts: Iterable[tuple[Tensor, Tensor]], documents: int) -> dict[str, Floats]:
    """Mean over each document's rows of x (document, width), as ``residual``, and of each SAE's codes (document,
    latent). ``parts``: rows and the places of their documents, as :class:`Parts` gives them."""
    one = next(iter(saes.values())).b_dec
    rows, sums = one.new_zeros(documents, 1), {"residual": one.new_zeros(documents, len(one))}
    sums |= {name: one.new_zeros(documents, sae.latents) for name, sae in saes.items()}
    for x, at in parts:
        rows += torch.bincount(at, minlength=documents)[:, None]
        sums["residual"].index_add_(0, at, x)
        for name, sae in saes.items():
            codes = sae.encode(x)
            flat = at[codes.pattern.row_of] * sae.latents + codes.pattern.latents
            sums[name].view(-1).index_add_(0, flat, codes.values)
    return {name: (total / rows).cpu().numpy() for name, total in sums.items()}


@torch.inference_mode()
def untrained(sae: SAE, x: Tensor, generator: torch.Generator) -> SAE:
    """What ``sae`` must beat: as many random directions, of which as many are active on the rows ``x`` as of its own.

    ``x``: (row, width) raw activations, on which the one threshold is settled."""
    per_row = float(sae.encode(x).active().float().mean())
    directions = normalize(torch.randn(sae.latents, sae.width, generator=generator), dim=1).to(x.device)
    random = SAE(directions, torch.zeros_like(directions[:, 0]), directions, sae.b_dec, k=1)
    return with_threshold(random, per_row, lambda: [x])
