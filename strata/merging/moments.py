"""Sums over the training rows from which the best decoder of any merging follows.

With z (row, latent) the codes and X (row, width) the rows: zᵀz, zᵀX and Σz. A merging's own are Mᵀ zᵀz M, Mᵀ zᵀX and
Mᵀ Σz, so that one pass serves every size of the curve. Each sum is a float64 that grows row by row, in the order of the
rows: how they are cut into blocks changes no bit of it. Memory is 8 bytes × latents².
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numba import prange
from numpy.typing import NDArray
from torch import Tensor

from strata.sae.engine.compiled import njit
from strata.sae.sae import Codes

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """``gram`` (latent, latent), ``cross`` (latent, width), ``sums`` (latent,), ``total`` (width,): Σx. Float64."""

    rows: int
    gram: Floats
    cross: Floats
    sums: Floats
    total: Floats

    def tensors(self) -> dict[str, Tensor]:
        """The same as tensors, to be kept until the stage is done."""
        arrays = {"gram": self.gram, "cross": self.cross, "sums": self.sums, "total": self.total}
        return {"rows": torch.tensor(self.rows), **{name: torch.from_numpy(array) for name, array in arrays.items()}}

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> "Moments":
        """What :meth:`tensors` was made of."""
        rows = int(tensors["rows"])
        return cls(rows, **{name: tensor.numpy() for name, tensor in tensors.items() if name != "rows"})


def moments(blocks: Iterable[tuple[Tensor, Codes]], latents: int, width: int) -> Moments:
    """Add up ``blocks`` of rows, (row, width), and their codes."""
    rows, total = 0, np.zeros(width)
    gram, cross, sums = np.zeros((latents, latents)), np.zeros((latents, width)), np.zeros(latents)
    for block, codes in blocks:
        x, pattern = block.float().cpu().numpy(), codes.pattern
        order, ends, owner = (part.cpu().numpy() for part in pattern.transposed)
        starts, columns, values = (part.cpu().numpy() for part in (pattern.starts, pattern.latents, codes.values))
        _add_gram(gram, order, ends, owner, starts, columns, values)
        _add_cross(cross, sums, order, ends, owner, values, x)
        _add_rows(total, x)
        rows += len(x)
    _mirror(gram)
    return Moments(rows, gram, cross, sums, total)


@njit(parallel=True, nogil=True, cache=True)
def _add_gram(gram, order, ends, owner, starts, columns, values):  # pragma: no cover
    """Entries (i, j ≥ i): a row's latents ascend, so that the rest of its row follows each entry."""
    for i in prange(len(ends) - 1):
        sums = gram[i]
        for e in range(ends[i], ends[i + 1]):
            value = np.float64(values[order[e]])
            for other in range(order[e], starts[owner[e] + 1]):
                sums[columns[other]] += value * values[other]


@njit(parallel=True, nogil=True, cache=True)
def _add_cross(cross, sums, order, ends, owner, values, x):  # pragma: no cover
    for i in prange(len(ends) - 1):
        for e in range(ends[i], ends[i + 1]):
            value, row = np.float64(values[order[e]]), x[owner[e]]
            sums[i] += value
            for k in range(len(row)):
                cross[i, k] += value * row[k]


@njit(nogil=True, cache=True)
def _add_rows(total, x):  # pragma: no cover
    for row in range(len(x)):
        for k in range(len(total)):
            total[k] += x[row, k]


@njit(parallel=True, nogil=True, cache=True)
def _mirror(gram):  # pragma: no cover
    for i in prange(len(gram)):
        for j in range(i):
            gram[i, j] = gram[j, i]


@njit(parallel=True, nogil=True, cache=True)
def grouped_gram(gram: Floats, groups: NDArray[np.int64], shares: Floats, count: int) -> Floats:  # pragma: no cover
    """Mᵀ zᵀz M, (group, group), for ``groups`` and ``shares`` as `strata.sae.sae` has them."""
    found = np.zeros((count, count))
    order = np.argsort(groups, kind="mergesort")
    for g in prange(count):
        for at in range(np.searchsorted(groups[order], g), len(order)):
            i = order[at]
            if groups[i] != g:
                break
            for j in range(len(groups)):
                if groups[j] >= 0:
                    found[g, groups[j]] += shares[i] * shares[j] * gram[i, j]
    return found
