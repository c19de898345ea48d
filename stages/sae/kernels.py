"""Sparse codes and the products that cost k, not F.

A code matrix is (row, latent) with few entries a row; its pattern is in CSR form. Two products carry all of training,
and each is the other's gradient:

    sampled(x, W)    v[e]    = x[row(e)] · W[latent(e)]       the encoder, at the pattern only
    decode(v, W)     y[row]  = Σ_e v[e] W[latent(e)]          the decoder

Weights are (latent, width), so that a latent's weights are contiguous for both.
"""

import warnings
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

GROUP = 8  # latents of which only the largest is looked at first

with warnings.catch_warnings():  # torch says once a process that sparse CSR is in beta; let it say so here
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor([0, 0], [], [], (1, 1), check_invariants=False)


@dataclass(frozen=True)
class Pattern:
    """Where a (rows, latents) code matrix has entries.

    ``starts``: (rows + 1,) int64, the first entry of each row. ``latents``: (entries,) int64.
    """

    starts: Tensor
    latents: Tensor
    width: int

    @property
    def rows(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def row_of(self) -> Tensor:
        """(entries,) the row of each entry."""
        rows = torch.arange(self.rows, device=self.latents.device)
        return torch.repeat_interleave(rows, self.starts.diff(), output_size=len(self.latents))

    @cached_property
    def transposed(self) -> tuple[Tensor, Tensor, Tensor]:
        """Entries ordered by latent: their order, the first entry of each latent, their rows."""
        latents, order = torch.sort(self.latents, stable=True)
        firsts = torch.searchsorted(latents, torch.arange(self.width, device=latents.device))
        return order, firsts, self.row_of[order]

    def dense(self, values: Tensor) -> Tensor:
        """The (rows, latents) matrix itself, for tests and small things."""
        out = torch.zeros(self.rows, self.width, dtype=values.dtype, device=values.device)
        return out.index_put((self.row_of, self.latents), values)

    def keep(self, mask: Tensor) -> "Pattern":
        """The entries where ``mask`` (entries,) holds."""
        ends = torch.cat([mask.new_zeros(1, dtype=torch.long), mask.cumsum(0)])
        return Pattern(ends[self.starts], self.latents[mask], self.width)


def pattern_of(mask: Tensor) -> Pattern:
    """The pattern of a dense boolean (row, latent) matrix."""
    return from_entries(mask.flatten().nonzero().flatten(), mask.shape)


def from_entries(entries: Tensor, shape: torch.Size) -> Pattern:
    """The pattern of flat indices into a matrix of that shape, sorted by row."""
    ends = torch.arange(0, (shape[0] + 1) * shape[1], shape[1], device=entries.device)
    rows = entries.div(shape[1], rounding_mode="floor") * shape[1]
    return Pattern(torch.searchsorted(rows, ends), entries - rows, shape[1])


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 for choosing latents where the hardware multiplies it, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


def above(h: Tensor, low: Tensor) -> Tensor:
    """The entries of ``h`` (row, latent) above ``low``, () or (latent,), not negative: flat indices, sorted by row.

    Few are, so the largest of every eight latents is looked at first: one fast pass over h in place of three. Bits are
    compared as integers: floats that are not negative are in the order of their bits, negative ones have the sign bit.
    """
    rows, latents = h.shape
    bits, low = h.view(_bits(h.dtype)), low.to(h.dtype).view(_bits(h.dtype))
    if latents % GROUP:
        return (bits > low).flatten().nonzero().flatten()
    low = low.expand(latents)
    columns = latents // GROUP
    hits = (bits.view(rows, GROUP, columns).amax(1) > low.view(GROUP, columns).amin(0)).flatten().nonzero()
    column = hits % columns
    latent = column + torch.arange(0, latents, columns, device=h.device)
    entries = (hits - column) * GROUP + latent
    return entries.flatten()[(bits.take(entries) > low.take(latent)).flatten().nonzero().flatten()]


def largest(h: Tensor, k: int) -> Tensor:
    """(row, k): the latents of the ``k`` largest entries of each row, in no order, exact where they are not negative.

    The largest of every eight first; bits as integers, as in :func:`above`. Negative entries may take each other's
    place, which no code can tell: they are cut off.
    """
    rows, latents = h.shape
    columns = latents // GROUP
    bits = h.view(_bits(h.dtype))
    if latents % GROUP or columns <= 2 * k:
        return bits.topk(k, dim=1, sorted=False).indices
    grouped = bits.view(rows, GROUP, columns)
    best = grouped.amax(1).topk(k, dim=1, sorted=False).indices[:, None].expand(-1, GROUP, -1)
    chosen = grouped.gather(2, best).flatten(1).topk(k, dim=1, sorted=False).indices
    return chosen // k * columns + best.flatten(1).gather(1, chosen)


def _bits(dtype: torch.dtype) -> torch.dtype:
    return torch.int16 if dtype is torch.bfloat16 else torch.int32


def kth(values: Tensor, k: int) -> Tensor:
    """The ``k``-th largest of positive ``values``; for bfloat16 by counting its 32,768 positive bit patterns."""
    if values.dtype is not torch.bfloat16:
        return values.kthvalue(len(values) - k + 1).values
    counts = torch.bincount(values.view(torch.int16), minlength=2**15)
    least = (counts.flip(0).cumsum(0) >= k).nonzero()[0]
    return (2**15 - 1 - least).to(torch.int16).view(torch.bfloat16)[0]


def _triton() -> ModuleType:
    from stages.sae import cuda  # Triton is there on Linux alone

    return cuda


def _sample(x: Tensor, weight: Tensor, pattern: Pattern) -> Tensor:
    if x.is_cuda:
        return _triton().sample(x, weight, pattern)
    zeros = torch.zeros(len(pattern.latents), dtype=x.dtype, device=x.device)
    shape = (pattern.rows, pattern.width)
    blank = torch.sparse_csr_tensor(pattern.starts, pattern.latents, zeros, shape, check_invariants=False)
    return torch.sparse.sampled_addmm(blank, x, weight.T, beta=0).values()


def _sum_rows(values: Tensor, pattern: Pattern, weight: Tensor) -> Tensor:
    """(row, width): Σ over a row's entries of value × weight[latent]."""
    if weight.is_cuda:
        return _triton().sum_rows(values, pattern, weight)
    return embedding_bag(pattern.latents, weight, pattern.starts[:-1], mode="sum", per_sample_weights=values)


def _sum_latents(values: Tensor, pattern: Pattern, x: Tensor) -> Tensor:
    """(latent, width): Σ over a latent's entries of value × x[row]."""
    if x.is_cuda:
        return _triton().sum_latents(values, pattern, x)
    order, firsts, rows = pattern.transposed
    return embedding_bag(rows, x, firsts, mode="sum", per_sample_weights=values[order])


class _Sampled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, pattern: Pattern) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.pattern = pattern
        return _sample(x, weight, pattern)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grads[0].contiguous()
        to_x = _sum_rows(grad, ctx.pattern, weight) if ctx.needs_input_grad[0] else None
        return to_x, _sum_latents(grad, ctx.pattern, x), None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, pattern: Pattern) -> Tensor:
        ctx.save_for_backward(values, weight)
        ctx.pattern = pattern
        return _sum_rows(values, pattern, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, weight = ctx.saved_tensors
        grad = grads[0].contiguous()
        return _sample(grad, weight, ctx.pattern), _sum_latents(values, ctx.pattern, grad), None


def sampled(x: Tensor, weight: Tensor, pattern: Pattern) -> Tensor:
    """(entries,): x[row] · weight[latent] at each entry; gradients to both."""
    values = _Sampled.apply(x, weight, pattern)
    assert isinstance(values, Tensor)
    return values


def decode(values: Tensor, weight: Tensor, pattern: Pattern) -> Tensor:
    """(row, width): each row's entries times their latents' weights, summed; gradients to both."""
    rows = _Decode.apply(values, weight, pattern)
    assert isinstance(rows, Tensor)
    return rows
