"""The products of `dispatch.py` on a CUDA device, in Triton.

Matrices and values are float32 or bfloat16. Sums are float32, and their order is always the same: nothing is added
atomically, so that equal inputs give equal bits. Index arrays are int64. In the kernels each pointer stands for a
contiguous array, whose shape is beside it.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from strata.sae.engine.pattern import Pattern

ENTRIES = 8  # entries that a program takes at a time
COLUMNS = 256  # columns of the width that it takes at a time: 8 × 256 × 4 bytes = 8 kB in flight
# Entries of a latent that one program sums. Without this limit, a latent that fires on every row would keep one program
# busy for long after all others are done.
CHUNK = 128


@triton.jit
def dot_kernel(
    out,  # (entries,) float32
    x,  # (rows, width)
    weight,  # (latents, width)
    starts,  # (rows + 1,), the first entry of each row, and the end
    latents,  # (entries,)
    width,
    ENTRIES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Set out[e] = x[row] · weight[latents[e]] for the entries e of a row. There is one program for each row."""
    row = tl.program_id(0).to(tl.int64)
    end = tl.load(starts + row + 1)
    for first in range(tl.load(starts + row), end, ENTRIES):
        entry = first + tl.arange(0, ENTRIES)
        is_entry = entry < end
        latent = tl.load(latents + entry, mask=is_entry, other=0)
        total = tl.zeros((ENTRIES, COLUMNS), tl.float32)
        for left in range(0, width, COLUMNS):
            column = left + tl.arange(0, COLUMNS)
            inside = column < width
            a = tl.load(x + row * width + column, mask=inside, other=0.0).to(tl.float32)
            mask = is_entry[:, None] & inside[None, :]
            b = tl.load(weight + latent[:, None] * width + column[None, :], mask=mask, other=0.0).to(tl.float32)
            total += a[None, :] * b
        tl.store(out + entry, tl.sum(total, 1), mask=is_entry)


@triton.jit
def sum_kernel(
    out,  # (segments, width) float32
    values,  # (entries,)
    indices,  # (entries,), the row of the matrix for each entry
    matrix,  # (matrix rows, width)
    starts,  # (segments,), the first entry of each segment
    ends,  # (segments,), the entry after its last
    width,
    ENTRIES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Set out[s] = Σ values[e] × matrix[indices[e]] over the entries e of a segment s.

    There is one program for each segment and block of columns.
    """
    segment = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    end = tl.load(ends + segment)
    total = tl.zeros((COLUMNS,), tl.float32)
    for first in range(tl.load(starts + segment), end, ENTRIES):
        entry = first + tl.arange(0, ENTRIES)
        is_entry = entry < end
        index = tl.load(indices + entry, mask=is_entry, other=0)
        value = tl.load(values + entry, mask=is_entry, other=0.0).to(tl.float32)
        mask = is_entry[:, None] & inside[None, :]
        row = tl.load(matrix + index[:, None] * width + column[None, :], mask=mask, other=0.0).to(tl.float32)
        total += tl.sum(value[:, None] * row, 0)
    tl.store(out + segment * width + column, total, mask=inside)


@triton.jit
def add_kernel(
    out,  # (latents, width) float32, added to
    pieces,  # (pieces, width) float32
    latents,  # (pieces,), the latent of each piece
    ends,  # (pieces,), at the first piece of a latent: the piece after its last one; at all other pieces: 0
    width,
    ENTRIES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Add Σ pieces[p … ends[p] - 1] to out[latents[p]], for each first piece p of a latent.

    There is one program for each piece and block of columns. The programs of other pieces (ends[p] ≤ p) do nothing, so
    that one program alone adds to a row of ``out``.
    """
    piece = tl.program_id(0).to(tl.int64)
    end = tl.load(ends + piece)
    if piece < end:
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        inside = column < width
        place = out + tl.load(latents + piece) * width + column
        total = tl.load(place, mask=inside, other=0.0)
        for first in range(piece, end, ENTRIES):
            index = first + tl.arange(0, ENTRIES)
            mask = (index < end)[:, None] & inside[None, :]
            total += tl.sum(tl.load(pieces + index[:, None] * width + column[None, :], mask=mask, other=0.0), 0)
        tl.store(place, total, mask=inside)


def sddmm(x: Tensor, weight: Tensor, pattern: Pattern, bias: Tensor | None = None) -> Tensor:
    """Return x[row] · weight[latent] + bias[latent] for each entry, (entries,).

    ``x``: (row, width); ``weight``: (latent, width); ``bias``: (latent,).
    """
    out = torch.empty(len(pattern.latents), device=x.device)
    arrays = out, x.contiguous(), weight.contiguous(), pattern.starts, pattern.latents
    _launch(dot_kernel, (pattern.rows,), x.shape[1], *arrays)
    return out if bias is None else out + bias[pattern.latents]


def sum_rows(values: Tensor, pattern: Pattern, weight: Tensor) -> Tensor:
    """Return (row, width): Σ over a row's entries of value × weight[latent].

    ``values``: (entries,); ``weight``: (latent, width).
    """
    return _sum(values, pattern.latents, weight, pattern.starts[:-1], pattern.starts[1:])


def sum_latents(values: Tensor, pattern: Pattern, x: Tensor) -> Tensor:
    """Return (latent, width): Σ over a latent's entries of value × x[row].

    ``values``: (entries,); ``x``: (row, width).

    The first CHUNK entries of a latent are summed straight into its row. Further entries are summed in pieces of CHUNK,
    and the pieces are then added to the row. There are at most entries / CHUNK pieces. This number is launched in any
    case: to know how many there really are, the CPU would have to wait for the device.
    """
    order, firsts, rows = pattern.transposed
    values, entries = values[order], len(rows)
    starts, ends = firsts[:-1], firsts[1:]  # (latent,)
    out = _sum(values, rows, x, starts, torch.minimum(starts + CHUNK, ends))
    if entries <= CHUNK:
        return out

    # (latent,) How many pieces each latent has. With n entries it needs ceil(n / CHUNK) - 1 besides the first CHUNK
    # entries. It gets n // CHUNK, which is that number, or one more; then its last piece is empty.
    #
    # Pieces are numbered latent by latent: those of latent l end before piece_ends[l].
    counts = (ends - starts) // CHUNK
    piece_ends = counts.cumsum(0)

    # (piece,) The latent of each piece, and how many CHUNKs of this latent's entries come before the piece: 1 or more,
    # because the first CHUNK entries are in no piece. More pieces may be launched than the latents have. The surplus
    # goes to the last latent, where those pieces begin past its entries, so that they are empty.
    piece = torch.arange(entries // CHUNK, device=x.device)
    latents = torch.searchsorted(piece_ends, piece, right=True).clamp(max=pattern.width - 1)
    chunks_before = piece - (piece_ends - counts)[latents] + 1

    piece_starts = starts[latents] + chunks_before * CHUNK
    pieces = _sum(values, rows, x, piece_starts, torch.minimum(piece_starts + CHUNK, ends[latents]))

    # The first piece of a latent adds up all of them. If the last latent has no pieces, a surplus piece looks like its
    # first one; but there piece_ends is not above that piece's own number, so that add_kernel does nothing.
    run_ends = torch.where(chunks_before == 1, piece_ends[latents], 0)
    _launch(add_kernel, _blocks(pieces), x.shape[1], out, pieces, latents, run_ends)
    return out


def _sum(values: Tensor, indices: Tensor, matrix: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
    """Launch :func:`sum_kernel`, and return what it computes, (segment, width)."""
    out = torch.empty(len(starts), matrix.shape[1], device=matrix.device)
    arrays = out, values.contiguous(), indices, matrix.contiguous(), starts, ends
    _launch(sum_kernel, _blocks(out), matrix.shape[1], *arrays)
    return out


def _blocks(out: Tensor) -> tuple[int, int]:
    """Return the grid with a program for each row of ``out`` and each block of columns."""
    return len(out), -(-out.shape[1] // COLUMNS)


def _launch(kernel: Any, grid: tuple[int, ...], width: int, *tensors: Tensor) -> None:
    """Launch ``kernel`` on the device of its arrays ``tensors``, which come in the order of its parameters."""
    columns = min(COLUMNS, 1 << (width - 1).bit_length())  # Triton's blocks are powers of two; no wider than the rows
    with torch.cuda.device_of(tensors[0]):
        kernel[grid](*tensors, width, ENTRIES=ENTRIES, COLUMNS=columns)
