"""The cheap product of 8-bit numbers, and the choice from it, where a CPU has an instruction for it: compiled by Numba.

Rows and latents become bytes with a scale each; :mod:`strata.sae.engine.tile` says how h comes of them. Both are padded
to whole tiles with bytes that add nothing.
"""

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from numba import prange
from numba.core.registry import cpu_target
from numpy.typing import NDArray

from strata.sae.engine.choosing import Csr, joined, take
from strata.sae.engine.compiled import njit
from strata.sae.engine.tile import PANEL, TALL, halve, lowest, mark

BLOCK = 16 * TALL  # rows that go through all panels together, at the most; their bytes stay in the second-level cache
SHARES = 32  # into which rows are cut where there are enough, for as many threads
Rows = tuple[NDArray[np.uint8], NDArray[np.float32]]
Sums = tuple[NDArray[np.int32], NDArray[np.float32]]


@cache
def there() -> bool:
    """Whether Numba compiles for a CPU with the instruction."""
    return "+avx512vnni" in _features()


@cache
def best() -> bool:
    """Whether it is the best that this CPU has: some multiply whole matrices (AMX), and torch knows how."""
    return there() and "+amx-int8" not in _features()


def _features() -> list[str]:
    context: Any = cpu_target.target_context
    _, _, features = context.codegen().magic_tuple()
    return features.split(",")


def room(latents: int, width: int) -> NDArray[np.int32]:
    """Room for an encoder's panels, where torch puts its tensors: no register is read across two lines of the cache."""
    return torch.empty(math.ceil(latents / PANEL), math.ceil(width / 4), PANEL, dtype=torch.int32).numpy()


@njit(inline="always")
def _block(rows):  # pragma: no cover
    return min(BLOCK, max(1, rows // SHARES // TALL) * TALL)


@njit(parallel=True, nogil=True, cache=True)
def above(rows, latents, q, row_scales, panels, start, scales, bias, low) -> Csr:  # pyright: ignore[reportReturnType]
    """The entries of the ``rows`` and ``latents``, without the padding, where h exceeds ``low`` (latent,)."""
    words, size = panels.shape[1], _block(rows)
    found, counts = np.empty((rows, latents), np.int32), np.zeros(rows, np.int64)
    for block in prange(math.ceil(rows / size)):
        marks = np.empty(TALL, np.uint64)
        for panel in range(len(panels)):
            first = panel * PANEL
            for row in range(block * size, min((block + 1) * size, rows), TALL):
                mark(
                    q[row:].ctypes.data, words, panels[panel].ctypes.data, start[first:].ctypes.data,
                    row_scales[row:].ctypes.data, scales[first:].ctypes.data, bias[first:].ctypes.data,
                    low[first:].ctypes.data, marks.ctypes.data,
                )  # fmt: skip
                for i in range(min(TALL, rows - row)):
                    word, n = marks[i], counts[row + i]
                    while word:
                        found[row + i, n] = first + lowest(word)
                        word &= word - np.uint64(1)
                        n += 1
                    counts[row + i] = n
    return joined(found, counts)


@njit(parallel=True, nogil=True, cache=True)
def strongest(rows, latents, q, row_scales, panels, start, scales, bias, least) -> Csr:  # pyright: ignore[reportReturnType]
    """The positive entries of each of the ``rows`` that are among its ``least`` largest, and up to a quarter more."""
    words, padded, size = panels.shape[1], len(bias), _block(rows)
    found, counts = np.empty((rows, latents), np.int32), np.empty(rows, np.int64)
    for block in prange(math.ceil(rows / size)):
        halves, marks, cut = np.empty((size, padded), np.int16), np.empty(latents, np.int8), np.int64(0)
        begin, end = block * size, min((block + 1) * size, rows)
        for panel in range(len(panels)):
            first = panel * PANEL
            for row in range(begin, end, TALL):
                halve(
                    q[row:].ctypes.data, words, panels[panel].ctypes.data, start[first:].ctypes.data,
                    row_scales[row:].ctypes.data, scales[first:].ctypes.data, bias[first:].ctypes.data,
                    padded, halves[row - begin, first:].ctypes.data,
                )  # fmt: skip
        for row in range(begin, end):
            cut, counts[row] = take(halves[row - begin, :latents], least, cut, marks, found[row])
    return joined(found, counts)


@njit(parallel=True, nogil=True, cache=True, fastmath=True)
def of_rows(x, columns) -> Rows:  # pyright: ignore[reportReturnType]
    """x[row] · columns ≈ scale[row] · (q[row] − 128); with rows and columns of nothing up to whole tiles and words."""
    rows, width = x.shape
    padded = math.ceil(rows / TALL) * TALL
    q, scales = np.empty((padded, math.ceil(width / 4) * 4), np.uint8), np.zeros(padded, np.float32)
    for row in prange(padded):
        q[row] = 128
        if row < rows:
            scale = _scale(x, row, columns)
            scales[row] = scale
            for j in range(width):
                q[row, j] = np.uint8(x[row, j] * columns[j] / scale + np.float32(128.5))
    return q, scales


@njit(parallel=True, nogil=True, cache=True, fastmath=True)
def of_latents(x, columns, packed) -> Sums:  # pyright: ignore[reportReturnType]
    """x[latent] · columns ≈ scale[latent] · q[latent], q written to ``packed``; where sums start, and the scales."""
    latents, width = x.shape
    panels, words, _ = packed.shape
    start, scales = np.zeros(panels * PANEL, np.int32), np.zeros(panels * PANEL, np.float32)
    for panel in prange(panels):
        q = np.zeros((PANEL, 4 * words), np.int8)
        for latent in range(panel * PANEL, min((panel + 1) * PANEL, latents)):
            scale, total = _scale(x, latent, columns), np.int32(0)
            scales[latent] = scale
            for j in range(width):  # rounded where all are positive, so that cutting off rounds to the nearest
                byte = np.int32(x[latent, j] * columns[j] / scale + np.float32(128.5)) - 128
                q[latent % PANEL, j] = byte
                total += byte
            start[latent] = -128 * total
        fours = q.view(np.int32)
        for word in range(words):
            for i in range(PANEL):
                packed[panel, word, i] = fours[i, word]
    return start, scales


@njit(inline="always", fastmath=True)
def _scale(x, row, columns):  # pragma: no cover
    """The largest size in a row goes to 127. Sizes are in the order of their bits, whose maximum takes many at once."""
    numbers, largest = x[row], np.float32(1e-30).view(np.int32)
    for j in range(len(numbers)):
        largest = max(largest, np.float32(numbers[j] * columns[j]).view(np.int32) & 0x7FFFFFFF)
    return np.int32(largest).view(np.float32) / np.float32(127)
