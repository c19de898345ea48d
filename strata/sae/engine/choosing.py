"""The loops of choosing latents on the CPU, compiled by Numba: each reads the product once, a row at a time in cache.

A product is given as the bits of its floats, int16 for bfloat16 and int32 for float32, and stands for
h = product + bias[latent]. The result is in CSR form: the first entry of each row, and the latents.
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
ONE = 0x3F800000  # the bits of 1.0, where the first cut is looked for
CHUNK = 2**13  # entries that an int16 can count
TILE = 64  # neighbouring rows, whose cuts are searched one from the other
Csr = tuple[NDArray[np.int64], NDArray[np.int64]]
Kept = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]


def _same_bits(source: Any, target: Any, llvm: ir.Type) -> Any:
    """What takes a number in its register for one of another type with the same bits."""

    @intrinsic
    def cast(typing: Any, number: types.Type) -> Any:
        return target(source), lambda context, builder, signature, args: builder.bitcast(args[0], llvm)

    return cast


_float_of = _same_bits(types.int32, types.float32, ir.FloatType())
_bits_of = _same_bits(types.float32, types.int32, ir.IntType(32))


@njit(inline="always")
def _collect(marks, found):  # pragma: no cover
    """Write where ``marks``, bytes, are 1 to the front of ``found``; how many are.

    Few are: eight are passed over at once, or written without a branch to mispredict.
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
def joined(found, counts) -> Csr:  # pyright: ignore[reportReturnType]
    starts = np.zeros(len(counts) + 1, np.int64)
    starts[1:] = counts.cumsum()
    latents = np.empty(starts[-1], np.int64)
    for row in prange(len(counts)):
        latents[starts[row] : starts[row + 1]] = found[row, : counts[row]]
    return starts, latents


@njit(parallel=True, nogil=True, cache=True)
def above(bits, bias, low) -> Csr:  # pyright: ignore[reportReturnType]
    """The entries where h exceeds ``low`` (latent,)."""
    rows, latents = bits.shape
    shift = FLOAT - 8 * bits.itemsize
    found, counts = np.empty((rows, latents), np.int32), np.empty(rows, np.int64)
    left = low - bias  # one vector to read with each row in place of two
    for row in prange(rows):
        source, marks = bits[row], np.empty(latents, np.int8)
        for j in range(latents):
            marks[j] = np.int8(_float_of(np.int32(source[j]) << shift) > left[j])
        counts[row] = _collect(marks, found[row])
    return joined(found, counts)


@njit(parallel=True, nogil=True, cache=True)
def strongest(bits, bias, least) -> Csr:  # pyright: ignore[reportReturnType]
    """The positive entries of each row that are among its ``least`` largest, and up to a quarter more."""
    rows, latents = bits.shape
    shift = FLOAT - 8 * bits.itemsize
    found, counts = np.empty((rows, latents), np.int32), np.empty(rows, np.int64)
    for tile in prange(math.ceil(rows / TILE)):
        halves, marks, cut = np.empty(latents, np.int16), np.empty(latents, np.int8), np.int64(0)
        for row in range(tile * TILE, min((tile + 1) * TILE, rows)):
            source = bits[row]
            for j in range(latents):  # to the bits of a bfloat16, rounded down: half as much to pass over
                halves[j] = np.int16(_bits_of(_float_of(np.int32(source[j]) << shift) + bias[j]) >> 16)
            cut, counts[row] = take(halves, least, cut, marks, found[row])
    return joined(found, counts)


@njit(inline="always")
def take(halves, least, guess, marks, found):  # pragma: no cover
    """Write the places of a row's ``least`` largest, and up to a quarter more, to the front of ``found``.

    ``halves``: bits of bfloat16. ``guess``: the cut of the row before; 0 is none. Returns this row's, and how many.
    """
    cut = _cut(halves, 0x7F80, least, least + least // 4, guess if guess else ONE >> 16)
    bound = np.int16(cut)
    for j in range(len(halves)):
        marks[j] = np.int8(halves[j] > bound)
    return cut, _collect(marks, found)


@njit(inline="always")
def _cut(ints, infinity, least, most, guess):  # pragma: no cover
    """Bits c ≥ 0 of a float that at least ``least`` and at the most ``most`` exceed, where there is one.

    Floats that are not negative are in the order of their bits: steps that double lead from ``guess`` past c, bisection
    back to it. Each count is one pass over a short row.
    """
    low, high, found, step, middle = 0, infinity, len(ints) + 1, 8, guess
    while high - low > 1 and found > most:
        middle = min(max(middle, low + 1), high - 1)
        n = _count(ints, ints.dtype.type(middle))
        if n >= least:
            low, found = middle, n
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
def _count(ints, bound):  # pragma: no cover
    n = 0
    for first in range(0, len(ints), CHUNK):
        part, some = ints[first : first + CHUNK], np.int16(0)
        for j in range(len(part)):
            some = np.int16(some + np.int16(part[j] > bound))  # as narrow as bfloat16, so that a vector holds many
        n += some
    return n


@njit(parallel=True, nogil=True, cache=True)
def largest(groups, starts, latents, values, k) -> Kept:  # pyright: ignore[reportReturnType]
    """The ``k`` largest positive entries of each group of rows, and their values; of equals, the first.

    ``groups``: the first row of each, and the end.
    """
    bits, rows = values.view(np.int32), len(starts) - 1
    cuts, limits = np.empty(rows, np.int32), np.empty(rows, np.int64)
    for group in prange(len(groups) - 1):
        first, limit = starts[groups[group]], starts[groups[group + 1]]
        cut = _cut(bits[first:limit], 0x7F800000, k, k, ONE)
        surplus = _count(bits[first:limit], np.int32(cut)) - k
        while surplus > 0 and limit > first:  # the smallest that are left are equal (or NaN); from the limit on they go
            limit -= 1
            surplus -= bits[limit] == cut + 1
        for row in range(groups[group], groups[group + 1]):
            cuts[row], limits[row] = cut, limit
    counts = np.zeros(rows + 1, np.int64)
    for row in prange(rows):
        n = 0
        for entry in range(starts[row], starts[row + 1]):
            n += bits[entry] > cuts[row] + (entry >= limits[row])
        counts[row + 1] = n
    ends = counts.cumsum()
    found, kept = np.empty(ends[-1], np.int64), np.empty(ends[-1], np.float32)
    for row in prange(rows):
        n = ends[row]
        for entry in range(starts[row], starts[row + 1]):
            if bits[entry] > cuts[row] + (entry >= limits[row]):
                found[n], kept[n] = latents[entry], values[entry]
                n += 1
    return ends, found, kept
