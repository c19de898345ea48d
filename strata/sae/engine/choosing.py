"""Loops that choose latents on the CPU, compiled by Numba. Each reads the product once; a row at a time is in cache.

A product is passed as the bits of its floats, int16 for bfloat16 and int32 for float32. It stands for
h = product + bias[latent]. Results are in CSR form: the first entry of each row and the end, and the latents.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from strata.sae.engine.compiled import njit

FLOAT = 32  # bits
ONE = 0x3F800000  # the bits of 1.0, where the search for a first cut begins
CHUNK = 2**13  # entries counted at a time, few enough for an int16
TILE = 64  # neighbouring rows; the search for a row's cut begins at the cut of the row before
Csr = tuple[NDArray[np.int64], NDArray[np.int64]]  # starts (rows + 1,), latents (entries,)
Kept = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]  # starts, latents, values (entries,)


def _same_bits(source: Any, target: Any, llvm: ir.Type) -> Any:
    """Return an intrinsic that reads a number in its register as one of another type with the same bits."""

    @intrinsic
    def cast(typing: Any, number: types.Type) -> Any:
        return target(source), lambda context, builder, signature, args: builder.bitcast(args[0], llvm)

    return cast


_float_of = _same_bits(types.int32, types.float32, ir.FloatType())
_bits_of = _same_bits(types.float32, types.int32, ir.IntType(32))


@njit(inline="always")
def _collect(
    marks,  # (latents,) int8, 0 or 1
    found,  # (latents,) int32, whose front gets the numbers of the latents with mark 1
):  # pragma: no cover
    """Write the places of the ones in ``marks`` to the front of ``found``, and return how many there are.

    Few marks are 1. So eight zeros are skipped at once; where one of eight is 1, all eight are written without a
    branch, which the CPU would often predict wrongly.
    """
    n, eights = 0, len(marks) // 8
    words = marks[: eights * 8].view(np.int64)
    for i in range(eights):
        if words[i]:
            for j in range(8 * i, 8 * i + 8):
                found[n] = j
                n += marks[j]
    for j in range(8 * eights, len(marks)):
        found[n] = j
        n += marks[j]
    return n


@njit(parallel=True, nogil=True, cache=True)
def joined(
    found,  # (rows, latents) int32, each row's latents at its front
    counts,  # (rows,) int64, how many there are
) -> Csr:  # pyright: ignore[reportReturnType]
    """Bring the latents of all rows into CSR form."""
    starts = np.zeros(len(counts) + 1, np.int64)
    starts[1:] = counts.cumsum()
    latents = np.empty(starts[-1], np.int64)
    for row in prange(len(counts)):
        latents[starts[row] : starts[row + 1]] = found[row, : counts[row]]
    return starts, latents


@njit(parallel=True, nogil=True, cache=True)
def above(
    bits,  # (rows, latents) int16 or int32, the product
    bias,  # (latents,) float32
    low,  # (latents,) float32
) -> Csr:  # pyright: ignore[reportReturnType]
    """Choose the entries where h exceeds ``low``."""
    rows, latents = bits.shape
    shift = FLOAT - 8 * bits.itemsize  # a bfloat16 is the upper half of a float32
    chosen, counts = np.empty((rows, latents), np.int32), np.empty(rows, np.int64)
    left = low - bias  # so that one vector is read with each row, not two
    for row in prange(rows):
        source, marks = bits[row], np.empty(latents, np.int8)
        for j in range(latents):
            marks[j] = np.int8(_float_of(np.int32(source[j]) << shift) > left[j])
        counts[row] = _collect(marks, chosen[row])
    return joined(chosen, counts)


@njit(parallel=True, nogil=True, cache=True)
def strongest(
    bits,  # (rows, latents) int16 or int32, the product
    bias,  # (latents,) float32
    least,  # int, how many entries of a row are wanted
) -> Csr:  # pyright: ignore[reportReturnType]
    """Choose the ``least`` largest entries of each row and up to a quarter more, but only positive ones."""
    rows, latents = bits.shape
    shift = FLOAT - 8 * bits.itemsize
    chosen, counts = np.empty((rows, latents), np.int32), np.empty(rows, np.int64)
    for tile in prange(math.ceil(rows / TILE)):
        halves, marks, cut = np.empty(latents, np.int16), np.empty(latents, np.int8), np.int64(0)
        for row in range(tile * TILE, min((tile + 1) * TILE, rows)):
            source = bits[row]
            # Bits of a bfloat16, rounded down: half as much to go through in each pass of the search.
            for j in range(latents):
                halves[j] = np.int16(_bits_of(_float_of(np.int32(source[j]) << shift) + bias[j]) >> 16)
            cut, counts[row] = take(halves, least, cut, marks, chosen[row])
    return joined(chosen, counts)


@njit(inline="always")
def take(
    halves,  # (latents,) int16, the h of a row as bits of bfloat16
    least,  # int, how many entries are wanted
    guess,  # int64, the cut of the row before; 0 where there is none
    marks,  # (latents,) int8, room for this function
    found,  # (latents,) int32, whose front gets the latents
):  # pragma: no cover
    """Write the latents with the ``least`` largest h of a row, and up to a quarter more, to the front of ``found``.

    Returns the cut of this row, as bits, and how many latents were written.
    """
    cut = _cut(halves, 0x7F80, least, least + least // 4, guess if guess else ONE >> 16)
    bound = np.int16(cut)
    for j in range(len(halves)):
        marks[j] = np.int8(halves[j] > bound)
    return cut, _collect(marks, found)


@njit(inline="always")
def _cut(
    ints,  # (n,) int16 or int32, the bits of floats
    infinity,  # int, the bits of infinity in that type
    least,  # int, at least so many of them have to exceed the cut
    most,  # int, and at most so many
    guess,  # int, the bits where the search begins
):  # pragma: no cover
    """Find the bits c ≥ 0 of a float that at least ``least`` and at most ``most`` of the floats exceed.

    Where there is none, as among equal floats, c is the largest that at least ``least`` exceed; it is 0 where fewer are
    positive. Floats that are not negative have the order of their bits. Steps that double lead from ``guess`` past c,
    then bisection leads back to it. Each count is one pass over a short row.
    """
    low, high, exceeding, step, middle = 0, infinity, len(ints) + 1, 8, guess
    while high - low > 1 and exceeding > most:
        middle = min(max(middle, low + 1), high - 1)
        n = _count(ints, ints.dtype.type(middle))
        if n >= least:
            low, exceeding = middle, n
        else:
            high = middle
        if high == infinity:
            middle = low + step
        elif low == 0:
            middle = high - step
        else:
            middle = low + (high - low) // 2
        step *= 2
    return low


@njit(inline="always")
def _count(
    ints,  # (n,) int16 or int32
    bound,  # of the same type
):  # pragma: no cover
    """Count how many of ``ints`` exceed ``bound``."""
    n = 0
    for first in range(0, len(ints), CHUNK):
        part, count = ints[first : first + CHUNK], np.int16(0)
        for j in range(len(part)):
            count = np.int16(count + np.int16(part[j] > bound))  # as narrow as bfloat16: a register holds many counts
        n += count
    return n


@njit(parallel=True, nogil=True, cache=True)
def largest(
    groups,  # (groups + 1,) int64, the first row of each group of rows, and the end
    starts,  # (rows + 1,) int64, the first entry of each row, and the end
    latents,  # (entries,) int64
    values,  # (entries,) float32
    k,  # int, how many entries of a group to keep
) -> Kept:  # pyright: ignore[reportReturnType]
    """Keep the ``k`` largest positive entries of each group of rows, with their values. Of equals, keep the first.

    This takes two passes: first the cut of each group, then the entries above it.
    """
    bits, rows = values.view(np.int32), len(starts) - 1

    # An entry stays if its bits exceed its row's cut; from the row's limit on, if they exceed it by more than 1.
    cuts, limits = np.empty(rows, np.int32), np.empty(rows, np.int64)
    for group in prange(len(groups) - 1):
        first, limit = starts[groups[group]], starts[groups[group + 1]]
        cut = _cut(bits[first:limit], 0x7F800000, k, k, ONE)
        surplus = _count(bits[first:limit], np.int32(cut)) - k

        # More than k are left only if the smallest of them are equal, cut + 1 (or NaN). The last of these are dropped.
        while surplus > 0 and limit > first:
            limit -= 1
            surplus -= bits[limit] == cut + 1
        for row in range(groups[group], groups[group + 1]):
            cuts[row], limits[row] = cut, limit

    # Count what stays in each row, so that rows can be written in parallel.
    counts = np.zeros(rows + 1, np.int64)
    for row in prange(rows):
        n = 0
        for entry in range(starts[row], starts[row + 1]):
            n += bits[entry] > cuts[row] + (entry >= limits[row])
        counts[row + 1] = n
    ends = counts.cumsum()

    kept_latents, kept_values = np.empty(ends[-1], np.int64), np.empty(ends[-1], np.float32)
    for row in prange(rows):
        n = ends[row]
        for entry in range(starts[row], starts[row + 1]):
            if bits[entry] > cuts[row] + (entry >= limits[row]):
                kept_latents[n], kept_values[n] = latents[entry], values[entry]
                n += 1
    return ends, kept_latents, kept_values
