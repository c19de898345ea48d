"""How alike the latents of a layer are: four similarities, and the distance that their weighted sum gives.

    s_ij = Σ_m w_m s^m_ij / Σ_m w_m,   d_ij = 1 − s_ij,   0 ≤ d ≤ 2

decoder       u_i · u_j, the cosine of the decoder directions
profile       the cosine of the mean codes over documents
correlation   of the codes over all rows, most of which are 0
jaccard       |A_i ∩ A_j| / |A_i ∪ A_j| of the sets of rows on which the latents fire; 0 where neither ever does

Everything of a pair is kept *condensed*, as scipy orders it: (0, 1), (0, 2) … (n − 2, n − 1), float32, so that
n = 16,384 latents take 0.5 GB an array, and little else grows with n². A sum over the codes costs k² a row, not n².
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray
from scipy.sparse import csc_array, csr_array

from strata.families.knobs import Weights
from strata.interpretation.read import Columns
from strata.sae.engine.compiled import njit

BLOCK = 512  # latents whose cosines with all others are in memory together
Floats = NDArray[Any]
Sparse = Any  # a csr_array, which is typed too loosely to be read from


def pairs(n: int) -> int:
    """How many pairs n latents have: the length of a condensed array."""
    return n * (n - 1) // 2


def start_of(i: int, n: int) -> int:
    """Where the pairs (i, i + 1), (i, i + 2) … of row i begin in a condensed array."""
    return i * (2 * n - i - 1) // 2


@dataclass
class Moments:
    """Sums over weighted rows of n latents' codes z, and of whether they fire, a = [z > 0].

    ``products``: condensed float32, Σ w z_i z_j. ``both``: condensed float32, Σ w a_i a_j. ``sums``, ``squares``,
    ``active``: (n,) float64, Σ w z, Σ w z², Σ w a. ``rows``: Σ w.
    """

    products: Floats
    both: Floats
    sums: Floats
    squares: Floats
    active: Floats
    rows: float = 0.0

    @classmethod
    def empty(cls, n: int) -> "Moments":
        products, both = np.zeros(pairs(n), np.float32), np.zeros(pairs(n), np.float32)
        return cls(products, both, np.zeros(n), np.zeros(n), np.zeros(n))

    def add(self, columns: Columns, weight: Floats) -> None:
        """Add some rows: the codes of all n latents there, rows counted from 0, and the ``weight`` (rows,) of each."""
        latent, w = columns.latents(), weight[columns.rows]
        n = len(self.sums)
        for total, power in ((self.sums, 1), (self.squares, 2), (self.active, 0)):
            total += np.bincount(latent, w * columns.values.astype(np.float64) ** power, n)
        self.rows += float(weight.sum())
        numbered = (np.arange(len(latent)), columns.rows, columns.starts)
        by_row = csc_array(numbered, shape=(len(weight), n)).tocsr()
        entry = np.asarray(by_row.data, np.intp)  # which of the codes each one by row is
        place = np.empty_like(entry)
        place[entry] = np.arange(len(entry))
        _products(
            columns.starts,
            columns.rows,
            place,
            by_row.indptr,
            by_row.indices,
            columns.values[entry],
            weight.astype(np.float64),
            self.products,
            self.both,
        )


@njit(parallel=True, nogil=True, cache=True)
def _products(starts, rows, place, begins, latents, values, weight, products, both):  # pragma: no cover
    n = len(starts) - 1
    for turn in prange(n):
        i = turn // 2 if turn % 2 == 0 else n - 1 - turn // 2  # rows are long and short in turn: equal work a thread
        sums = np.zeros((n, 2))
        for e in range(starts[i], starts[i + 1]):
            r, p = rows[e], place[e]
            w = weight[r]
            if w > 0:
                v = w * values[p]
                for other in range(p + 1, begins[r + 1]):
                    j = latents[other]
                    sums[j, 0] += v * values[other]
                    sums[j, 1] += w
        first = i * (2 * n - i - 1) // 2 - i - 1
        for j in range(i + 1, n):
            products[first + j] += sums[j, 0]
            both[first + j] += sums[j, 1]


def unit(rows: Floats) -> Floats:
    """Rows scaled to length 1; a row of zeros stays one."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1)


def unit_sparse(rows: Sparse) -> Sparse:
    """The same for a sparse matrix."""
    length = np.sqrt(np.asarray(rows.multiply(rows).sum(1)).ravel())
    scale = np.repeat(1 / np.where(length > 0, length, 1), np.diff(rows.indptr))
    return csr_array(((rows.data * scale).astype(np.float32), rows.indices, rows.indptr), rows.shape)


def distances(decoder: Floats, profile: Sparse, moments: Moments, weights: Weights) -> Floats:
    """Condensed float32 d_ij of n latents. ``decoder``: (n, width). ``profile``: (n, documents), mean codes."""
    n, total = len(decoder), sum(weights.model_dump().values())
    out, directions, profiles = np.empty(pairs(n), np.float32), unit(decoder.astype(np.float32)), unit_sparse(profile)
    deviation = np.sqrt(np.maximum(moments.squares - moments.sums**2 / max(moments.rows, 1), 0))
    deviation[deviation <= 1e-6 * np.sqrt(moments.squares)] = 0  # constant: it has no correlation
    scale = np.divide(1, deviation, out=np.zeros(n), where=deviation > 0)
    for first in range(0, n, BLOCK):
        end = min(first + BLOCK, n)
        block = np.zeros((end - first, n - first), np.float32)
        if weights.decoder:
            block += weights.decoder * (directions[first:end] @ directions[first:].T)
        if weights.profile:
            block += weights.profile * (profiles[first:] @ profiles[first:end].toarray().T).T
        for i in range(first, end):
            at, row = slice(start_of(i, n), start_of(i, n) + n - 1 - i), block[i - first, i - first + 1 :]
            if weights.correlation:
                means = moments.sums[i] * moments.sums[i + 1 :] / max(moments.rows, 1)
                row += weights.correlation * (moments.products[at] - means) * (scale[i] * scale[i + 1 :])
            if weights.jaccard:
                either = moments.active[i] + moments.active[i + 1 :] - moments.both[at]
                row += weights.jaccard * np.divide(moments.both[at], either, out=np.zeros(len(row)), where=either > 0)
            out[at] = np.clip(1 - row / total, 0, 2)
    return out
