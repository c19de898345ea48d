"""The products of `dispatch.py` on a CUDA device, in Triton.

Matrices and values are float32 or bfloat16; sums are float32, taken in an order that is always the same: nothing is
added atomically, so that equal inputs give equal bits.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from strata.sae.engine.pattern import Pattern

ENTRIES = 8  # that a program takes at a time
COLUMNS = 256  # of the width, likewise: 8 × 256 × 4 bytes = 8 kB in flight
CHUNK = 128  # entries of a latent that one program sums; a latent that fires on every row would keep one busy for long


@triton.jit
def dot_kernel(out, x, weight, starts, latents, width, ENTRIES: tl.constexpr, COLUMNS: tl.constexpr):
    """out[e] = x[row] · weight[latents[e]] for the entries of a row: starts[row] … starts[row + 1] - 1."""
    row = tl.program_id(0).to(tl.int64)
    end = tl.load(starts + row + 1)
    for first in range(tl.load(starts + row), end, ENTRIES):
        entry = first + tl.arange(0, ENTRIES)
        there = entry < end
        latent = tl.load(latents + entry, mask=there, other=0)
        total = tl.zeros((ENTRIES, COLUMNS), tl.float32)
        for left in range(0, width, COLUMNS):
            column = left + tl.arange(0, COLUMNS)
            inside = column < width
            a = tl.load(x + row * width + column, mask=inside, other=0.0).to(tl.float32)
            mask = there[:, None] & inside[None, :]
            b = tl.load(weight + latent[:, None] * width + column[None, :], mask=mask, other=0.0).to(tl.float32)
            total += a[None, :] * b
        tl.store(out + entry, tl.sum(total, 1), mask=there)


@triton.jit
def sum_kernel(out, values, indices, matrix, starts, ends, width, ENTRIES: tl.constexpr, COLUMNS: tl.constexpr):
    """out[s] = Σ values[e] × matrix[indices[e]] over the entries of a segment: starts[s] … ends[s] - 1."""
    segment = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    end = tl.load(ends + segment)
    total = tl.zeros((COLUMNS,), tl.float32)
    for first in range(tl.load(starts + segment), end, ENTRIES):
        entry = first + tl.arange(0, ENTRIES)
        there = entry < end
        index = tl.load(indices + entry, mask=there, other=0)
        value = tl.load(values + entry, mask=there, other=0.0).to(tl.float32)
        mask = there[:, None] & inside[None, :]
        row = tl.load(matrix + index[:, None] * width + column[None, :], mask=mask, other=0.0).to(tl.float32)
        total += tl.sum(value[:, None] * row, 0)
    tl.store(out + segment * width + column, total, mask=inside)


@triton.jit
def add_kernel(out, pieces, latents, ends, width, ENTRIES: tl.constexpr, COLUMNS: tl.constexpr):
    """out[latents[p]] += Σ pieces[p … ends[p] - 1], which must not be shared; nothing where ends[p] is not above p."""
    piece = tl.program_id(0).to(tl.int64)
    end = tl.load(ends + piece)
    if piece < end:
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        inside = column < width
        place = out + tl.load(latents + piece) * width + column
        total = tl.load(place, mask=inside, other=0.0)
        for first in range(piece, end, ENTRIES):
            one = first + tl.arange(0, ENTRIES)
            mask = (one < end)[:, None] & inside[None, :]
            total += tl.sum(tl.load(pieces + one[:, None] * width + column[None, :], mask=mask, other=0.0), 0)
        tl.store(place, total, mask=inside)


def sample(x: Tensor, weight: Tensor, pattern: Pattern, bias: Tensor | None = None) -> Tensor:
    """(entries,): x[row] · weight[latent] + bias[latent]. ``x``: (row, width); ``weight``: (latent, width)."""
    out = torch.empty(len(pattern.latents), device=x.device)
    tensors = out, x.contiguous(), weight.contiguous(), pattern.starts, pattern.latents
    _launch(dot_kernel, (pattern.rows,), x.shape[1], *tensors)
    return out if bias is None else out + bias[pattern.latents]


def sum_rows(values: Tensor, pattern: Pattern, weight: Tensor) -> Tensor:
    """(row, width): Σ over a row's entries of value × weight[latent]. ``values``: (entries,)."""
    return _sum(values, pattern.latents, weight, pattern.starts[:-1], pattern.starts[1:])


def sum_latents(values: Tensor, pattern: Pattern, x: Tensor) -> Tensor:
    """(latent, width): Σ over a latent's entries of value × x[row]. ``values``: (entries,).

    A latent's first CHUNK entries are summed where they belong, what it has beyond them in pieces that are then added.
    There are at most entries / CHUNK pieces; to know how many, the CPU would have to wait for the device.
    """
    order, firsts, rows = pattern.transposed
    values, entries, firsts, ends = values[order], len(rows), firsts[:-1], firsts[1:]
    out = _sum(values, rows, x, firsts, torch.minimum(firsts + CHUNK, ends))
    if entries > CHUNK:
        counts = (ends - firsts) // CHUNK
        after = counts.cumsum(0)
        piece = torch.arange(entries // CHUNK, device=x.device)
        latents = torch.searchsorted(after, piece, right=True).clamp(max=pattern.width - 1)
        number = piece - (after - counts)[latents] + 1  # of its latent; a piece too many begins past its latent's end
        starts = firsts[latents] + number * CHUNK
        pieces = _sum(values, rows, x, starts, torch.minimum(starts + CHUNK, ends[latents]))
        last = torch.where(number == 1, after[latents], 0)
        _launch(add_kernel, _blocks(pieces), x.shape[1], out, pieces, latents, last)
    return out


def _sum(values: Tensor, indices: Tensor, matrix: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
    """(segment, width) of :func:`sum_kernel`."""
    out = torch.empty(len(starts), matrix.shape[1], device=matrix.device)
    tensors = out, values.contiguous(), indices, matrix.contiguous(), starts, ends
    _launch(sum_kernel, _blocks(out), matrix.shape[1], *tensors)
    return out


def _blocks(out: Tensor) -> tuple[int, int]:
    """A program for each row and block of columns."""
    return len(out), -(-out.shape[1] // COLUMNS)


def _launch(kernel: Any, grid: tuple[int, ...], width: int, *tensors: Tensor) -> None:
    columns = min(COLUMNS, 1 << (width - 1).bit_length())
    with torch.cuda.device_of(tensors[0]):
        kernel[grid](*tensors, width, ENTRIES=ENTRIES, COLUMNS=columns)
