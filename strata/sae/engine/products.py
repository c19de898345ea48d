"""The products of `dispatch.py` and of the losses on a CPU, compiled by Numba.

They read far more than they compute. So four rows of weights are gone through together, which makes four streams from
memory instead of one. Where rows have many entries, rows and latents are taken in blocks that stay in the second-level
cache together, because a matrix of 16,384 latents does not even fit the third-level cache.

A pattern of entries is passed in CSR form: ``starts`` (rows + 1,) int64, the first entry of each row and the end;
``latents`` (entries,) int64, rising within a row. All other arrays are float32 unless they say otherwise.
"""

import math

import numpy as np
from numba import prange
from numpy.typing import NDArray

from strata.sae.engine.compiled import njit

CACHE = 2**20  # bytes of the second-level cache
FEW = 4  # entries of a row in a block of latents; with fewer, the visit costs more than the cache saves
SHARES = 32  # rows are cut into at least so many blocks, for as many threads
PARTS = 4  # rows are cut into so many parts where each latent's entries are counted
Csc = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]  # order, firsts, rows of the entries
Floats = tuple[NDArray[np.float32], NDArray[np.float32]]


@njit(inline="always")
def _blocks(entries, rows, latents, width):  # pragma: no cover
    """Return how many rows and how many latents a block has.

    Where blocks do not pay, it is one row and all latents: the weights of the row's entries then stay in the cache.
    """
    side = max(FEW, CACHE // (12 * width))  # a third of the cache for rows, two thirds for weights
    if latents <= 2 * side or entries * 2 * side < FEW * rows * latents:
        return 1, latents
    return min(side, math.ceil(rows / SHARES)), 2 * side  # sums depend on the latter alone


@njit(inline="always", fastmath=True)
def _dots(
    x,  # (width,)
    weight,  # (latents, width)
    latents,  # (entries,) int64
    first,  # int, the first entry to compute
    end,  # int, the entry after the last
    dots,  # (entries,), changed in place
):  # pragma: no cover
    """Set dots[e] = x · weight[latents[e]] for the entries e from ``first`` to ``end`` - 1."""
    e = first
    while e + 4 <= end:
        w0, w1, w2, w3 = (weight[latents[e]], weight[latents[e + 1]], weight[latents[e + 2]], weight[latents[e + 3]])
        s0, s1, s2, s3 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        for j in range(len(x)):
            s0 += x[j] * w0[j]
            s1 += x[j] * w1[j]
            s2 += x[j] * w2[j]
            s3 += x[j] * w3[j]
        dots[e], dots[e + 1], dots[e + 2], dots[e + 3] = s0, s1, s2, s3
        e += 4
    while e < end:
        w0, s0 = weight[latents[e]], np.float32(0)
        for j in range(len(x)):
            s0 += x[j] * w0[j]
        dots[e] = s0
        e += 1


@njit(inline="always", fastmath=True)
def _add(
    total,  # (width,), changed in place
    values,  # (entries,)
    rows,  # (places, width)
    places,  # (entries,) int64
    first,  # int, the first entry to add
    end,  # int, the entry after the last
):  # pragma: no cover
    """Add Σ values[e] · rows[places[e]] to ``total``, over the entries e from ``first`` to ``end`` - 1.

    Four values that are all 0 are skipped; jumprelu has many below its threshold.
    """
    e = first
    while e + 4 <= end:
        v0, v1, v2, v3 = values[e], values[e + 1], values[e + 2], values[e + 3]
        if v0 != 0 or v1 != 0 or v2 != 0 or v3 != 0:
            r0, r1, r2, r3 = (rows[places[e]], rows[places[e + 1]], rows[places[e + 2]], rows[places[e + 3]])
            for j in range(len(total)):
                total[j] += v0 * r0[j] + v1 * r1[j] + v2 * r2[j] + v3 * r3[j]
        e += 4
    while e < end:
        v0, r0 = values[e], rows[places[e]]
        for j in range(len(total)):
            total[j] += v0 * r0[j]
        e += 1


@njit(inline="always")
def _until(places, first, end, stop):  # pragma: no cover
    """Return the first entry from ``first`` on whose place is not below ``stop``. Places, (entries,) int64, rise."""
    while first < end and places[first] < stop:
        first += 1
    return first


@njit(parallel=True, nogil=True, cache=True)
def transposed(
    starts,  # (rows + 1,) int64
    latents,  # (entries,) int64
    width,  # int, the number of latents
) -> Csc:  # pyright: ignore[reportReturnType]
    """Order the entries by latent, and by row within a latent.

    Returns the entries in that order, (entries,); the first of each latent and the end, (width + 1,); and the rows of
    the entries, (entries,).
    """
    rows = len(starts) - 1

    # Count each latent's entries in each part of the rows.
    free = np.zeros((PARTS, width), np.int64)
    for part in prange(PARTS):
        for entry in range(starts[rows * part // PARTS], starts[rows * (part + 1) // PARTS]):
            free[part, latents[entry]] += 1

    # From here on, free[part, latent] is the next free place for an entry of that latent from that part of the rows.
    firsts, total = np.empty(width + 1, np.int64), 0
    for latent in range(width):
        firsts[latent] = total
        for part in range(PARTS):
            free[part, latent], total = total, total + free[part, latent]
    firsts[width] = total

    order, rows_of = np.empty(total, np.int64), np.empty(total, np.int64)
    for part in prange(PARTS):
        for row in range(rows * part // PARTS, rows * (part + 1) // PARTS):
            for entry in range(starts[row], starts[row + 1]):
                place = free[part, latents[entry]]
                order[place], rows_of[place] = entry, row
                free[part, latents[entry]] += 1
    return order, firsts, rows_of


@njit(parallel=True, nogil=True, cache=True, fastmath=True)
def sddmm(
    starts,  # (rows + 1,) int64
    latents,  # (entries,) int64
    x,  # (rows, width)
    weight,  # (latents, width)
    bias,  # (latents,)
) -> NDArray[np.float32]:  # pyright: ignore[reportReturnType]
    """Return x[row] · weight[latent] + bias[latent] for each entry, (entries,)."""
    rows, width = x.shape
    dots = np.empty(len(latents), np.float32)
    tile, block = _blocks(len(latents), rows, len(weight), width)
    for number in prange(math.ceil(rows / tile)):
        first, end = number * tile, min((number + 1) * tile, rows)
        entries = starts[first:end].copy()
        for stop in range(block, len(weight) + block, block):
            for row in range(first, end):
                entry = entries[row - first]
                entries[row - first] = _until(latents, entry, starts[row + 1], stop)
                _dots(x[row], weight, latents, entry, entries[row - first], dots)
                for e in range(entry, entries[row - first]):
                    dots[e] += bias[latents[e]]
    return dots


@njit(parallel=True, nogil=True, cache=True, fastmath=True)
def nested_residuals(
    starts,  # (rows + 1,) int64
    latents,  # (entries,) int64, rising within a row
    codes,  # (entries,)
    decoder,  # (latents, width)
    bias,  # (width,)
    y,  # (rows, width)
    ends,  # (groups,) int64, rising to the number of latents
    below,  # (groups, rows, width), of any content; gets Σ r_h over h ≥ g
) -> Floats:  # pyright: ignore[reportReturnType]
    """Compare rows with their nested reconstructions, and compute what the gradients need.

    The residual of group g is r_g = y − bias − Σ code · decoder[latent] over a row's entries with latent < ends[g].

    Returns Σ over g of ‖r_g‖² for each row, (rows,); and decoder[latent] · Σ r_g over the g with latent < ends[g] for
    each entry, (entries,). The gradient of Σ ‖r_g‖² by a code is −2 × the latter.
    """
    rows, width = y.shape
    errors, pulls, less = np.zeros(rows, np.float32), np.empty(len(latents), np.float32), -codes
    tile, block = _blocks(len(latents), rows, len(decoder), width)
    for number in prange(math.ceil(rows / tile)):
        first, end = number * tile, min((number + 1) * tile, rows)
        entries = starts[first:end].copy()  # of each row of the block, the next entry

        # below[g] = r_g: the residual of the group before, minus this group's own entries.
        for g in range(len(ends)):
            for row in range(first, end):
                for j in range(width):
                    below[g, row, j] = below[g - 1, row, j] if g else y[row, j] - bias[j]
            begin = ends[g - 1] if g else 0
            for stop in range(begin + block, ends[g] + block, block):
                for row in range(first, end):
                    entry = entries[row - first]
                    entries[row - first] = _until(latents, entry, starts[row + 1], min(stop, ends[g]))
                    _add(below[g, row], less, decoder, latents, entry, entries[row - first])
            for row in range(first, end):
                error = np.float32(0)
                for j in range(width):
                    error += below[g, row, j] * below[g, row, j]
                errors[row] += error

        # below[g] = Σ r_h over h ≥ g.
        for g in range(len(ends) - 2, -1, -1):
            for row in range(first, end):
                for j in range(width):
                    below[g, row, j] += below[g + 1, row, j]

        # Go through the entries once more, each with the sum of the residuals that its latent takes part in.
        entries[:] = starts[first:end]
        for g in range(len(ends)):
            begin = ends[g - 1] if g else 0
            for stop in range(begin + block, ends[g] + block, block):
                for row in range(first, end):
                    entry = entries[row - first]
                    entries[row - first] = _until(latents, entry, starts[row + 1], min(stop, ends[g]))
                    _dots(below[g, row], decoder, latents, entry, entries[row - first], pulls)
    return errors, pulls
