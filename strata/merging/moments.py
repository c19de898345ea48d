"""Add up the training rows, so that the best decoder of any merging follows from the sums.

With z (row, latent) the codes and X (row, width) the rows, the sums are zᵀz, zᵀX, Σz and Σx. Those of a merging M are
Mᵀ zᵀz M, Mᵀ zᵀX and Mᵀ Σz, so that one pass over the rows serves every size of the curve.

Each sum is a float64 that grows row by row, in the order of the rows, so that the size of the blocks does not change a
bit of it. The memory is 8 bytes × latents².

The kernels get a block's codes in two orders. By row: row r's ``columns`` (entries,) and ``values`` (entries,) float32
are at ``starts`` (rows + 1,)[r] to starts[r + 1], latents rising. By latent: latent i's entries are at ``ends``
(latents + 1,)[i] to ends[i + 1]; there, ``order`` (entries,) is the entry's place by row and ``owner`` (entries,) its
row. ``x``: (row, width) float32.
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
    """Sums over ``rows`` rows, float64.

    ``gram``: (latent, latent) zᵀz. ``cross``: (latent, width) zᵀX. ``sums``: (latent,) Σz. ``total``: (width,) Σx.
    """

    rows: int
    gram: Floats
    cross: Floats
    sums: Floats
    total: Floats

    def tensors(self) -> dict[str, Tensor]:
        """Turn the sums into tensors, to be kept in a file until the stage is done."""
        arrays = {"gram": self.gram, "cross": self.cross, "sums": self.sums, "total": self.total}
        return {"rows": torch.tensor(self.rows), **{name: torch.from_numpy(array) for name, array in arrays.items()}}

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> "Moments":
        """Make the sums from what :meth:`tensors` returned."""
        rows = int(tensors["rows"])
        return cls(rows, **{name: tensor.numpy() for name, tensor in tensors.items() if name != "rows"})


def moments(blocks: Iterable[tuple[Tensor, Codes]], latents: int, width: int) -> Moments:
    """Add up ``blocks`` of rows (row, width) and their codes."""
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
    """Add a block to the entries (i, j ≥ i) of ``gram``.

    The latents of a row rise, so that the codes of j ≥ i on the same row follow each code of i.
    """
    for i in prange(len(ends) - 1):
        sums = gram[i]
        for e in range(ends[i], ends[i + 1]):
            value = np.float64(values[order[e]])
            for entry in range(order[e], starts[owner[e] + 1]):
                sums[columns[entry]] += value * values[entry]


@njit(parallel=True, nogil=True, cache=True)
def _add_cross(cross, sums, order, ends, owner, values, x):  # pragma: no cover
    """Add a block to ``cross`` (latent, width) and ``sums`` (latent,)."""
    for i in prange(len(ends) - 1):
        for e in range(ends[i], ends[i + 1]):
            value, row = np.float64(values[order[e]]), x[owner[e]]
            sums[i] += value
            for k in range(len(row)):
                cross[i, k] += value * row[k]


@njit(nogil=True, cache=True)
def _add_rows(total, x):  # pragma: no cover
    """Add a block to ``total`` (width,), row by row."""
    for row in range(len(x)):
        for k in range(len(total)):
            total[k] += x[row, k]


@njit(parallel=True, nogil=True, cache=True)
def _mirror(gram):  # pragma: no cover
    """Fill the entries (i, j < i) of a symmetric ``gram`` from (j, i)."""
    for i in prange(len(gram)):
        for j in range(i):
            gram[i, j] = gram[j, i]


@njit(parallel=True, nogil=True, cache=True)
def grouped_gram(gram: Floats, groups: NDArray[np.int64], shares: Floats, count: int) -> Floats:  # pragma: no cover
    """Compute Mᵀ zᵀz M, (group, group), from ``gram`` zᵀz (latent, latent).

    ``groups``: (latent,) the group of each latent, or below 0. ``shares``: (latent,) how much of its code counts.
    """
    merged = np.zeros((count, count))
    order = np.argsort(groups, kind="mergesort")  # the latents of a group stand together
    for g in prange(count):
        for place in range(np.searchsorted(groups[order], g), len(order)):
            i = order[place]
            if groups[i] != g:
                break
            for j in range(len(groups)):
                if groups[j] >= 0:
                    merged[g, groups[j]] += shares[i] * shares[j] * gram[i, j]
    return merged
