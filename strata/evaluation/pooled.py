"""Average activations and codes over the tokens of a document: a probe sees a document as these means."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from strata.rows.batches import Rows, blocks
from strata.sae.sae import SAE
from strata.training.training import with_threshold

Floats = NDArray[np.float32]


def places(row_document: NDArray[np.integer], chosen: NDArray[np.integer], tokens: int | None) -> Tensor:
    """Find the place of each row's document in ``chosen``, (row,); -1 for rows that do not count.

    These are the rows of other documents, and rows behind the first ``tokens`` of a document; None: all rows count.

    ``row_document``: (row,) the document of each stored row in their order; the rows of a document stand together.
    ``chosen``: (document,) in rising order, each with rows.
    """
    place = np.searchsorted(chosen, row_document).clip(max=len(chosen) - 1)

    # (row,) its number within its document
    starts = np.flatnonzero(np.diff(row_document, prepend=-1))
    nth = np.arange(len(row_document)) - np.repeat(starts, np.diff(starts, append=len(row_document)))
    kept = (chosen[place] == row_document) & (nth < (tokens or len(row_document)))
    return torch.from_numpy(np.where(kept, place, -1))


@dataclass(frozen=True)
class Parts:
    """The rows that have a ``place`` ≥ 0, (row, width) float32, and their places, (row,), block by block."""

    activations: Rows
    place: Tensor
    device: torch.device

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        first = 0
        for block in blocks(self.activations, 0, len(self.place), self.device):
            place = self.place[first : first + len(block)].to(self.device)
            first += len(block)
            if (kept := place >= 0).any():
                yield block[kept].float(), place[kept]


@torch.inference_mode()
def pooled(saes: Mapping[str, SAE], parts: Iterable[tuple[Tensor, Tensor]], documents: int) -> dict[str, Floats]:
    """Average over each document's rows: x (document, width), as ``residual``, and each SAE's codes (document, latent).

    ``parts``: rows and the places of their documents, as :class:`Parts` gives them. ``documents``: how many there are.
    """
    bias = next(iter(saes.values())).b_dec  # gives the device and the dtype
    rows, sums = bias.new_zeros(documents, 1), {"residual": bias.new_zeros(documents, len(bias))}
    sums |= {name: bias.new_zeros(documents, sae.latents) for name, sae in saes.items()}

    for x, place in parts:
        rows += torch.bincount(place, minlength=documents)[:, None]
        sums["residual"].index_add_(0, place, x)
        for name, sae in saes.items():
            codes = sae.encode(x)
            flat = place[codes.pattern.row_of] * sae.latents + codes.pattern.latents
            sums[name].view(-1).index_add_(0, flat, codes.values)
    return {name: (total / rows).cpu().numpy() for name, total in sums.items()}


@torch.inference_mode()
def untrained(sae: SAE, x: Tensor, generator: torch.Generator) -> SAE:
    """Make the control that ``sae`` must beat: as many random directions, of which as many are active on a row.

    ``x``: (row, width) raw activations, on which the common threshold is set.
    """
    per_row = float(sae.encode(x).active().float().mean())
    directions = normalize(torch.randn(sae.latents, sae.width, generator=generator), dim=1).to(x.device)
    random = SAE(directions, torch.zeros_like(directions[:, 0]), directions, sae.b_dec, k=1)
    return with_threshold(random, per_row, lambda: [x])
