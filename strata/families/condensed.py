"""Loops over condensed distances, compiled by Numba: d_ij, i < j, stands at i (2n − i − 1) / 2 + j − i − 1."""

import numpy as np
from numba import prange
from numpy.typing import NDArray

from strata.sae.engine.compiled import njit

Edges = tuple[NDArray[np.int64], NDArray[np.float64]]


@njit(inline="always")
def _row(distance, n, i, out):  # pragma: no cover
    """All n distances of i into ``out``."""
    at = i - 1
    for j in range(i):
        out[j] = distance[at]
        at += n - j - 2
    out[i] = 0
    first = i * (2 * n - i - 1) // 2 - i - 1
    for j in range(i + 1, n):
        out[j] = distance[first + j]


@njit(nogil=True, cache=True)
def row(distance, n, i):
    """(n,) the distances of i from all."""
    out = np.empty(n, np.float32)
    _row(distance, n, i, out)
    return out


@njit(parallel=True, nogil=True, cache=True)
def summed(distance, labels, clusters):
    """(n, clusters) float64: the sum of the distances of each from the members of each cluster; labels below 0 count
    for nothing."""
    n = len(labels)
    out = np.zeros((n, clusters))
    for i in prange(n):
        whole = np.empty(n, np.float32)
        _row(distance, n, i, whole)
        for j in range(n):
            if labels[j] >= 0:
                out[i, labels[j]] += whole[j]
    return out


@njit(parallel=True, nogil=True, cache=True)
def nearest(distance, n, count):
    """(n, count): the nearest to each, itself first, and their distances; ties go to the lower. ``count`` ≤ n."""
    near, far = np.empty((n, count), np.int64), np.full((n, count), np.inf, np.float32)
    for i in prange(n):
        whole = np.empty(n, np.float32)
        _row(distance, n, i, whole)
        near[i, 0], far[i, 0] = i, 0
        for j in range(n):
            if whole[j] < far[i, count - 1] and j != i:
                at = count - 1
                while at > 1 and far[i, at - 1] > whole[j]:
                    near[i, at], far[i, at] = near[i, at - 1], far[i, at - 1]
                    at -= 1
                near[i, at], far[i, at] = j, whole[j]
    return near, far


@njit(nogil=True, cache=True)
def spanning_tree(distance, core) -> Edges:  # pyright: ignore[reportReturnType]
    """The minimum spanning tree, by Prim, of max(d_ij, core_i, core_j): (n - 1, 2) the ends of its edges, (n - 1,)
    their lengths."""
    n = len(core)
    ends, lengths = np.empty((n - 1, 2), np.int64), np.empty(n - 1)
    best, parent = np.full(n, np.inf), np.zeros(n, np.int64)
    outside, whole = np.ones(n, np.bool_), np.empty(n, np.float32)
    at = 0
    outside[0] = False
    for e in range(n - 1):
        _row(distance, n, at, whole)
        chosen, least = -1, np.inf
        for j in range(n):
            if outside[j]:
                length = max(whole[j], core[at], core[j])
                if length < best[j]:
                    best[j], parent[j] = length, at
                if best[j] < least or chosen < 0:
                    chosen, least = j, best[j]
        ends[e, 0], ends[e, 1], lengths[e] = parent[chosen], chosen, least
        outside[chosen] = False
        at = chosen
    return ends, lengths


@njit(parallel=True, nogil=True, cache=True)
def nearest_of(distance, labels, within):
    """(n,) for each with label -1, the label of the nearest one that has another, if not further than ``within``."""
    n = len(labels)
    out = labels.copy()
    for i in prange(n):
        if labels[i] < 0:
            whole = np.empty(n, np.float32)
            _row(distance, n, i, whole)
            least = np.inf
            for j in range(n):
                if labels[j] >= 0 and whole[j] <= within and whole[j] < least:
                    least, out[i] = whole[j], labels[j]
    return out
