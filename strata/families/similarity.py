"""Measure how alike the latents of a layer are: four similarities, and the distance that their weighted sum gives.

    s_ij = Σ_m w_m s^m_ij / Σ_m w_m,   d_ij = 1 − s_ij,   0 ≤ d ≤ 2

decoder       u_i · u_j, the cosine of the decoder directions
profile       the cosine of the mean codes over documents
correlation   Pearson's, of the codes over all rows, most of which are 0
jaccard       |A_i ∩ A_j| / |A_i ∪ A_j| of the sets of rows on which the latents fire; 0 where neither ever does

Every array over pairs is *condensed*, in scipy's order: (0, 1), (0, 2) … (n − 2, n − 1), float32. So n = 16,384 latents
take 0.5 GB an array, and little else grows with n². A sum over the codes costs k² a row, not n².
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

BLOCK = 512  # latents whose cosines with all others are in memory at a time
# A code whose deviation is below this share of its root mean square counts as constant: sums in float32 cannot tell its
# correlations from rounding.
CONSTANT = 3e-3
Floats = NDArray[Any]
Sparse = Any  # a csr_array, which is typed too loosely to be read from


def pairs(n: int) -> int:
    """Count the pairs of n latents: the length of a condensed array."""
    return n * (n - 1) // 2


def start_of(i: int, n: int) -> int:
    """Find where the pairs (i, i + 1), (i, i + 2) … of row i begin in a condensed array."""
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
        """Add some rows.

        ``columns``: the codes of all n latents on these rows, sorted by latent; rows are counted from 0. ``weight``:
        (rows,) how much each row counts.
        """
        latent, w = columns.latents(), weight[columns.rows]
        n = len(self.sums)
        for total, power in ((self.sums, 1), (self.squares, 2), (self.active, 0)):
            total += np.bincount(latent, w * columns.values.astype(np.float64) ** power, n)
        self.rows += float(weight.sum())

        # Sort the same codes by row: a matrix whose values are the codes' numbers 0, 1, 2 … goes from CSC to CSR. Then
        # entry[p] is the number of the code at place p of the order by row; ``place`` is the inverse.
        numbered = (np.arange(len(latent)), columns.rows, columns.starts)
        by_row = csc_array(numbered, shape=(len(weight), n)).tocsr()
        entry = np.asarray(by_row.data, np.intp)
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
    """Add the sums over pairs of n latents to ``products`` and ``both``, in condensed order.

    Codes come in two orders, of ``entries`` codes each. By latent: ``starts`` (n + 1,) where each latent's codes begin,
    ``rows`` (entries,) the row of each code, ``place`` (entries,) where it stands in the order by row. By row:
    ``begins`` (rows + 1,) where each row's codes begin, ``latents`` (entries,) the latent of each code, rising within a
    row, and ``values`` (entries,) the codes. ``weight``: (rows,).
    """
    n = len(starts) - 1
    for turn in prange(n):
        # Low latents have many pairs, high ones few; taken in turn, each thread gets the same work.
        i = turn // 2 if turn % 2 == 0 else n - 1 - turn // 2
        sums = np.zeros((n, 2))  # Σ w z_i z_j, Σ w a_i a_j for each j
        for e in range(starts[i], starts[i + 1]):
            r, p = rows[e], place[e]
            w = weight[r]
            if w > 0:
                v = w * values[p]
                # What follows in the row are the codes of the latents j > i.
                for entry in range(p + 1, begins[r + 1]):
                    j = latents[entry]
                    sums[j, 0] += v * values[entry]
                    sums[j, 1] += w

        shift = i * (2 * n - i - 1) // 2 - i - 1  # shift + j is the condensed place of the pair (i, j)
        for j in range(i + 1, n):
            products[shift + j] += sums[j, 0]
            both[shift + j] += sums[j, 1]


def unit(rows: Floats) -> Floats:
    """Scale ``rows`` (row, column) to length 1; a row of zeros stays as it is."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1)


def unit_sparse(rows: Sparse) -> Sparse:
    """Scale the rows of a sparse matrix to length 1, float32; a row of zeros stays as it is."""
    length = np.sqrt(np.asarray(rows.multiply(rows).sum(1)).ravel())
    scale = np.repeat(1 / np.where(length > 0, length, 1), np.diff(rows.indptr))
    return csr_array(((rows.data * scale).astype(np.float32), rows.indices, rows.indptr), rows.shape)


def distances(decoder: Floats, profile: Sparse, moments: Moments, weights: Weights) -> Floats:
    """Compute the condensed distances d_ij of n latents, float32.

    ``decoder``: (n, width). ``profile``: (n, documents) mean codes. ``moments``: sums over all rows; only needed for
    correlation and jaccard.
    """
    n, total_weight = len(decoder), sum(weights.model_dump().values())
    directions, profiles = unit(decoder.astype(np.float32)), unit_sparse(profile)

    # Standard deviations, up to a factor that cancels; 0 for a constant code, which correlates with nothing. Rows
    # have whole weights, so that moments.rows is at least 1, or 0 where the moments are not needed.
    deviation = np.sqrt(np.maximum(moments.squares - moments.sums**2 / max(moments.rows, 1), 0))
    deviation[deviation <= CONSTANT * np.sqrt(moments.squares)] = 0
    scale = np.divide(1, deviation, out=np.zeros(n), where=deviation > 0)

    out = np.empty(pairs(n), np.float32)
    for first in range(0, n, BLOCK):
        end = min(first + BLOCK, n)

        # (latents of the block, all from the block's first on)
        block = np.zeros((end - first, n - first), np.float32)
        if weights.decoder:
            block += weights.decoder * (directions[first:end] @ directions[first:].T)
        if weights.profile:
            block += weights.profile * (profiles[first:] @ profiles[first:end].toarray().T).T

        for i in range(first, end):
            # The pairs (i, j > i): their places in condensed arrays, and their similarities so far.
            places, similarity = slice(start_of(i, n), start_of(i, n) + n - 1 - i), block[i - first, i - first + 1 :]
            if weights.correlation:
                means = moments.sums[i] * moments.sums[i + 1 :] / max(moments.rows, 1)
                similarity += weights.correlation * (moments.products[places] - means) * (scale[i] * scale[i + 1 :])
            if weights.jaccard:
                either = moments.active[i] + moments.active[i + 1 :] - moments.both[places]
                jaccard = np.divide(moments.both[places], either, out=np.zeros(len(similarity)), where=either > 0)
                similarity += weights.jaccard * jaccard
            out[places] = np.clip(1 - similarity / total_weight, 0, 2)
    return out
