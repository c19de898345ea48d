"""Loops over condensed distances, compiled by Numba.

Everywhere below, ``distance`` is condensed, (n (n − 1) / 2,) float32: d_ij of i < j stands at
i (2n − i − 1) / 2 + j − i − 1.
"""

import numpy as np
from numba import prange
from numpy.typing import NDArray

from strata.sae.engine.compiled import njit

Edges = tuple[NDArray[np.int64], NDArray[np.float64]]


@njit(inline="always")
def _row(distance, n, i, out):  # pragma: no cover
    """Write the distances of i from all n into ``out`` (n,)."""
    # The pairs (j, i) with j < i: one in each of the rows above, at steps that become shorter.
    place = i - 1
    for j in range(i):
        out[j] = distance[place]
        place += n - j - 2

    # The pairs (i, j) with j > i stand side by side.
    out[i] = 0
    row_start = i * (2 * n - i - 1) // 2 - i - 1
    for j in range(i + 1, n):
        out[j] = distance[row_start + j]


@njit(nogil=True, cache=True)
def row(distance, n, i):
    """Return the distances of i from all n, (n,) float32."""
    out = np.empty(n, np.float32)
    _row(distance, n, i, out)
    return out


@njit(parallel=True, nogil=True, cache=True)
def summed(distance, labels, clusters):
    """Sum the distances of each of n from the members of each cluster, (n, clusters) float64.

    ``labels``: (n,) the cluster of each; a label below 0 belongs to none.
    """
    n = len(labels)
    out = np.zeros((n, clusters))
    for i in prange(n):
        away = np.empty(n, np.float32)  # from i
        _row(distance, n, i, away)
        for j in range(n):
            if labels[j] >= 0:
                out[i, labels[j]] += away[j]
    return out


@njit(parallel=True, nogil=True, cache=True)
def nearest(distance, n, count):
    """Find the ``count`` ≤ n nearest to each of n: their numbers (n, count) int64, and distances (n, count) float32.

    Each is its own nearest, and comes first. Of equal distances the lower number is nearer.
    """
    near, far = np.empty((n, count), np.int64), np.full((n, count), np.inf, np.float32)
    for i in prange(n):
        away = np.empty(n, np.float32)  # from i
        _row(distance, n, i, away)
        near[i, 0], far[i, 0] = i, 0
        for j in range(n):
            # Insert j where it belongs among the nearest so far, behind those that are as near.
            if away[j] < far[i, count - 1] and j != i:
                rank = count - 1
                while rank > 1 and far[i, rank - 1] > away[j]:
                    near[i, rank], far[i, rank] = near[i, rank - 1], far[i, rank - 1]
                    rank -= 1
                near[i, rank], far[i, rank] = j, away[j]
    return near, far


@njit(nogil=True, cache=True)
def spanning_tree(distance, core) -> Edges:  # pyright: ignore[reportReturnType]
    """Build the minimum spanning tree of max(d_ij, core_i, core_j), by Prim's algorithm.

    ``core``: (n,). Returns the ends of its edges, (n - 1, 2) int64, and their lengths, (n - 1,) float64.
    """
    n = len(core)
    ends, lengths = np.empty((n - 1, 2), np.int64), np.empty(n - 1)
    best, parent = np.full(n, np.inf), np.zeros(n, np.int64)  # the shortest edge from the tree to each outside it
    outside, away = np.ones(n, np.bool_), np.empty(n, np.float32)

    newest = 0  # the last that joined the tree
    outside[0] = False
    for edge in range(n - 1):
        _row(distance, n, newest, away)
        chosen, least = -1, np.inf
        for j in range(n):
            if outside[j]:
                length = max(away[j], core[newest], core[j])
                if length < best[j]:
                    best[j], parent[j] = length, newest
                if best[j] < least or chosen < 0:
                    chosen, least = j, best[j]

        ends[edge, 0], ends[edge, 1], lengths[edge] = parent[chosen], chosen, least
        outside[chosen] = False
        newest = chosen
    return ends, lengths


@njit(parallel=True, nogil=True, cache=True)
def nearest_of(distance, labels, within):
    """Label each that has a label below 0 by its nearest labelled one, if that is not further than ``within``.

    ``labels``: (n,). Returns new labels, (n,).
    """
    n = len(labels)
    out = labels.copy()
    for i in prange(n):
        if labels[i] < 0:
            away = np.empty(n, np.float32)  # from i
            _row(distance, n, i, away)
            least = np.inf
            for j in range(n):
                if labels[j] >= 0 and away[j] <= within and away[j] < least:
                    least, out[i] = away[j], labels[j]
    return out
