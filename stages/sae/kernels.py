"""Sparse codes and the products that cost k, not F.

A code matrix is (row, latent) with few entries a row; its pattern is in CSR form. Two products carry all of training,
and each is the other's gradient:

    sampled(x, W, b) v[e]    = x[row(e)] · W[latent(e)] + b   the encoder, at the pattern only
    decode(v, W)     y[row]  = Σ_e v[e] W[latent(e)]          the decoder

Weights are (latent, width), so that a latent's weights are contiguous for both.
"""

from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from stages.sae import cpu, products


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
        """Entries ordered by latent: their order, the first entry of each latent and the end, their rows."""
        if self.latents.device.type == "cpu":
            found = products.transposed(self.starts.numpy(), self.latents.numpy(), self.width)
            order, firsts, rows = map(torch.from_numpy, found)
            return order, firsts, rows
        latents, order = torch.sort(self.latents, stable=True)
        firsts = torch.searchsorted(latents, torch.arange(self.width + 1, device=latents.device))
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
    return Pattern(_starts(mask.sum(1)), mask.nonzero()[:, 1], mask.shape[1])


def joined(parts: list[Pattern]) -> Pattern:
    """The rows of all ``parts``, one below the other."""
    if len(parts) == 1:
        return parts[0]
    latents = torch.cat([part.latents for part in parts])
    return Pattern(_starts(torch.cat([part.starts.diff() for part in parts])), latents, parts[0].width)


def _starts(counts: Tensor) -> Tensor:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


def largest(pattern: Pattern, values: Tensor, k: int, together: bool = False) -> tuple[Pattern, Tensor]:
    """The ``k`` largest positive ``values`` (entries,) of each row, or of all rows ``together``; of equals, the first.

    Elsewhere than on a CPU all rows must have as many entries, unless they are taken together.
    """
    if values.device.type == "cpu":
        groups = np.array([0, pattern.rows]) if together else np.arange(pattern.rows + 1)
        found = cpu.largest(groups, pattern.starts.numpy(), pattern.latents.numpy(), values.numpy(), k)
        starts, latents, kept = map(torch.from_numpy, found)
        return Pattern(starts, latents, pattern.width), kept
    rows = values.reshape(1 if together else pattern.rows, -1)
    last = rows.topk(min(k, rows.shape[1]), dim=1).values[:, -1:]
    above, equal = rows > last, rows == last
    left = k - above.sum(1, keepdim=True)
    keep = ((above | (equal & (equal.cumsum(1) <= left))) & (rows > 0)).flatten()
    return pattern.keep(keep), values[keep]


def _triton() -> ModuleType:
    from stages.sae import cuda  # Triton is there on Linux alone

    return cuda


def sample(x: Tensor, weight: Tensor, pattern: Pattern, bias: Tensor | None = None) -> Tensor:
    """(entries,) x[row] · weight[latent] + bias[latent], without gradient."""
    if x.is_cuda:
        return _triton().sample(x, weight, pattern, bias)
    bias = torch.zeros(pattern.width) if bias is None else bias
    arrays = (t.detach().contiguous().numpy() for t in (pattern.starts, pattern.latents, x, weight, bias))
    return torch.from_numpy(products.sample(*arrays))


def _sum_rows(values: Tensor, pattern: Pattern, weight: Tensor) -> Tensor:
    """(row, width): Σ over a row's entries of value × weight[latent]."""
    if weight.is_cuda:
        return _triton().sum_rows(values, pattern, weight)
    return embedding_bag(pattern.latents, weight, pattern.starts[:-1], mode="sum", per_sample_weights=values)


def sum_latents(values: Tensor, pattern: Pattern, x: Tensor) -> Tensor:
    """(latent, width): Σ over a latent's entries of value × x[row]."""
    if x.is_cuda:
        return _triton().sum_latents(values, pattern, x)
    order, firsts, rows = pattern.transposed
    return embedding_bag(rows, x, firsts[:-1], mode="sum", per_sample_weights=values.index_select(0, order))


class _Sampled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, pattern: Pattern, known: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.pattern = pattern
        return sample(x, weight, pattern, bias) if known is None else known.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grads[0].contiguous()
        to_x = _sum_rows(grad, ctx.pattern, weight) if ctx.needs_input_grad[0] else None
        to_bias = torch.zeros(len(weight), device=grad.device).index_add_(0, ctx.pattern.latents, grad)
        return to_x, sum_latents(grad, ctx.pattern, x), to_bias, None, None


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
        return sample(grad, weight, ctx.pattern), sum_latents(values, ctx.pattern, grad), None


def sampled(x: Tensor, weight: Tensor, bias: Tensor, pattern: Pattern, known: Tensor | None = None) -> Tensor:
    """(entries,): x[row] · weight[latent] + bias[latent] at each entry; gradients to all three.

    ``known``: the values, where they have been computed already.
    """
    values = _Sampled.apply(x, weight, bias, pattern, known)
    assert isinstance(values, Tensor)
    return values


def decode(values: Tensor, weight: Tensor, pattern: Pattern) -> Tensor:
    """(row, width): each row's entries times their latents' weights, summed; gradients to both."""
    rows = _Decode.apply(values, weight, pattern)
    assert isinstance(rows, Tensor)
    return rows
