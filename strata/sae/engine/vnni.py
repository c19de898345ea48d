"""The cheap product of 8-bit numbers, and the choice from it, on CPUs that have an instruction for it (Numba).

Each row and each latent becomes bytes with one scale; :mod:`strata.sae.engine.tile` says how h is computed from them.
Both are padded to whole tiles with bytes that add nothing. The loops share these arrays:

    q            (padded rows, 4 · words) uint8, a row's bytes, 128 too large; words = width / 4, rounded up
    row_scales   (padded rows,) float32
    panels       (panels, words, PANEL) int32, four bytes of each of a panel's latents in each word
    start        (padded latents,) int32, where the sums of a latent start: −128 Σ of its bytes
    scales       (padded latents,) float32
    bias         (padded latents,) float32
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

BLOCK = 16 * TALL  # at most so many rows go through all panels together; their bytes stay in the second-level cache
SHARES = 32  # rows are cut into so many blocks where there are enough of them, for as many threads
Rows = tuple[NDArray[np.uint8], NDArray[np.float32]]  # q, row_scales
Sums = tuple[NDArray[np.int32], NDArray[np.float32]]  # start, scales


@cache
def there() -> bool:
    """Whether Numba compiles for a CPU that has the instruction."""
    return "+avx512vnni" in _features()


@cache
def best() -> bool:
    """Whether the instruction is the best that this CPU has: some multiply whole matrices (AMX), which torch uses."""
    return there() and "+amx-int8" not in _features()


def _features() -> list[str]:
    """List the features of the CPU that Numba compiles for, as LLVM writes them."""
    context: Any = cpu_target.target_context
    _, _, features = context.codegen().magic_tuple()
    return features.split(",")


def room(latents: int, width: int) -> NDArray[np.int32]:
    """Allocate the panels of an encoder (latents, width).

    torch aligns its tensors, so that no register is read across two lines of the cache.
    """
    return torch.empty(math.ceil(latents / PANEL), math.ceil(width / 4), PANEL, dtype=torch.int32).numpy()


@njit(inline="always")
def _block(rows):  # pragma: no cover
    """Return how many of ``rows`` a block has: whole tiles."""
    return min(BLOCK, max(1, rows // SHARES // TALL) * TALL)


@njit(parallel=True, nogil=True, cache=True)
def above(rows, latents, q, row_scales, panels, start, scales, bias, low) -> Csr:  # pyright: ignore[reportReturnType]
    """Choose the entries where h exceeds ``low`` (padded latents,), which is infinite in the padding.

    ``rows`` and ``latents``: how many there are without the padding. Other arrays: see the top of this file.
    """
    words, size = panels.shape[1], _block(rows)
    chosen, counts = np.empty((rows, latents), np.int32), np.zeros(rows, np.int64)
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

                # Each bit of a word that is 1 is a latent of the panel.
                for i in range(min(TALL, rows - row)):
                    word, n = marks[i], counts[row + i]
                    while word:
                        chosen[row + i, n] = first + lowest(word)
                        word &= word - np.uint64(1)
                        n += 1
                    counts[row + i] = n
    return joined(chosen, counts)


@njit(parallel=True, nogil=True, cache=True)
def strongest(rows, latents, q, row_scales, panels, start, scales, bias, least) -> Csr:  # pyright: ignore[reportReturnType]
    """Choose the ``least`` largest entries of each row and up to a quarter more, without those that are not positive.

    ``rows`` and ``latents``: how many there are without the padding. Other arrays: see the top of this file.
    """
    words, padded, size = panels.shape[1], len(bias), _block(rows)
    chosen, counts = np.empty((rows, latents), np.int32), np.empty(rows, np.int64)
    for block in prange(math.ceil(rows / size)):
        halves, marks, cut = np.empty((size, padded), np.int16), np.empty(latents, np.int8), np.int64(0)
        begin, end = block * size, min((block + 1) * size, rows)

        # h of the whole block as bfloat16; then the choice from each row.
        for panel in range(len(panels)):
            first = panel * PANEL
            for row in range(begin, end, TALL):
                halve(
                    q[row:].ctypes.data, words, panels[panel].ctypes.data, start[first:].ctypes.data,
                    row_scales[row:].ctypes.data, scales[first:].ctypes.data, bias[first:].ctypes.data,
                    padded, halves[row - begin, first:].ctypes.data,
                )  # fmt: skip
        for row in range(begin, end):
            cut, counts[row] = take(halves[row - begin, :latents], least, cut, marks, chosen[row])
    return joined(chosen, counts)


@njit(parallel=True, nogil=True, cache=True, fastmath=True)
def of_rows(
    x,  # (rows, width) float32
    columns,  # (width,) float32, what each column is multiplied by
) -> Rows:  # pyright: ignore[reportReturnType]
    """Round rows to bytes: x[row] · columns ≈ scale[row] · (q[row] − 128).

    Rows are padded to whole tiles and columns to whole words, with bytes of 128, which stand for 0.
    """
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
def of_latents(
    x,  # (latents, width) float32
    columns,  # (width,) float32, what each column is multiplied by
    packed,  # (panels, words, PANEL) int32, gets the bytes
) -> Sums:  # pyright: ignore[reportReturnType]
    """Round latents to bytes: x[latent] · columns ≈ scale[latent] · q[latent], with q written to ``packed``.

    Returns where the sums of each latent start, and the scales, each (padded latents,).
    """
    latents, width = x.shape
    panels, words, _ = packed.shape
    start, scales = np.zeros(panels * PANEL, np.int32), np.zeros(panels * PANEL, np.float32)
    for panel in prange(panels):
        q = np.zeros((PANEL, 4 * words), np.int8)
        for latent in range(panel * PANEL, min((panel + 1) * PANEL, latents)):
            scale, total = _scale(x, latent, columns), np.int32(0)
            scales[latent] = scale
            # np.int32 cuts off. Of positive numbers with 0.5 added, that rounds to the nearest; so 128 is added, too.
            for j in range(width):
                byte = np.int32(x[latent, j] * columns[j] / scale + np.float32(128.5)) - 128
                q[latent % PANEL, j] = byte
                total += byte
            start[latent] = -128 * total

        # Four bytes of each latent side by side, then the next four.
        fours = q.view(np.int32)
        for word in range(words):
            for i in range(PANEL):
                packed[panel, word, i] = fours[i, word]
    return start, scales


@njit(inline="always", fastmath=True)
def _scale(x, row, columns):  # pragma: no cover
    """Return the scale with which the largest |x[row] · columns| becomes 127.

    Absolute values have the order of their bits, and the CPU finds the maximum of many integers at once.
    """
    numbers, largest = x[row], np.float32(1e-30).view(np.int32)
    for j in range(len(numbers)):
        largest = max(largest, np.float32(numbers[j] * columns[j]).view(np.int32) & 0x7FFFFFFF)
    return np.int32(largest).view(np.float32) / np.float32(127)
