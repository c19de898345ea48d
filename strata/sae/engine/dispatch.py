"""Products whose cost grows with the number of active latents, not of all latents.

All of training rests on two of them, and each is the gradient of the other. An entry e is one active latent of one row.

    preactivations_at(x, W, b)   h[e] = x[row(e)] · W[latent(e)] + b[latent(e)]   the encoder, at the entries only
    decode(v, W)                 y[row] = Σ_e v[e] W[latent(e)]                   the decoder

:func:`sddmm` is the first one without gradients: a sampled dense-dense matrix product, that is, x Wᵀ computed at some
places only. Weights are (latent, width), so that for both products the weights of a latent are contiguous. A product
runs on the device of its arguments: on a CPU by Numba or torch, in float32 only; on CUDA by Triton (see cuda.py).
"""

from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from strata.sae.engine import choosing, products
from strata.sae.engine.pattern import Pattern


def largest(pattern: Pattern, values: Tensor, k: int, together: bool = False) -> tuple[Pattern, Tensor]:
    """Return the entries with the ``k`` largest positive ``values`` (entries,) of each row, and these values.

    ``k`` is at least 1. With ``together``, it counts for all rows together, as BatchTopK needs it. Of equal values, the
    first is taken. The entries that stay keep their order. On a CPU, NaN stays too, so that training finds it; on other
    devices it is dropped.

    On devices other than a CPU all rows must have the same number of entries, unless they are taken together. This is
    not checked: with other numbers, entries of different rows may be compared.
    """
    if values.device.type == "cpu":
        # The first row of each group of rows, and the end: all rows are one group, or each row is one.
        group_starts = np.array([0, pattern.rows]) if together else np.arange(pattern.rows + 1)
        kept = choosing.largest(group_starts, pattern.starts.numpy(), pattern.latents.numpy(), values.numpy(), k)
        starts, latents, kept_values = map(torch.from_numpy, kept)
        return Pattern(starts, latents, pattern.width), kept_values

    # Keep all values above the k-th largest of a group, and as many of those equal to it as there is room for.
    groups = values.reshape(1 if together else pattern.rows, -1)  # (group, entry)
    kth = groups.topk(min(k, groups.shape[1]), dim=1).values[:, -1:]
    above, equal = groups > kth, groups == kth
    room = k - above.sum(1, keepdim=True)
    keep = (above | (equal & (equal.cumsum(1) <= room))) & (groups > 0)
    return pattern.keep(keep.flatten()), values[keep.flatten()]


def _triton() -> ModuleType:
    """Import the products for CUDA, where they are needed."""
    from strata.sae.engine import cuda  # Triton exists for Linux only

    return cuda


def sddmm(x: Tensor, weight: Tensor, pattern: Pattern, bias: Tensor | None = None) -> Tensor:
    """Return x[row] · weight[latent] + bias[latent] for each entry, (entries,), without gradient.

    ``x``: (row, width); ``weight``: (latent, width); ``bias``: (latent,).
    """
    if x.is_cuda:
        return _triton().sddmm(x, weight, pattern, bias)
    bias = torch.zeros(pattern.width) if bias is None else bias
    arrays = (t.detach().contiguous().numpy() for t in (pattern.starts, pattern.latents, x, weight, bias))
    return torch.from_numpy(products.sddmm(*arrays))


def _sum_rows(values: Tensor, pattern: Pattern, weight: Tensor) -> Tensor:
    """Return (row, width): Σ over a row's entries of value × weight[latent], without gradient."""
    if weight.is_cuda:
        return _triton().sum_rows(values, pattern, weight)
    # A bag is a row: embedding_bag sums the weights of its latents, each times its value.
    return embedding_bag(pattern.latents, weight, pattern.starts[:-1], mode="sum", per_sample_weights=values)


def sum_latents(values: Tensor, pattern: Pattern, x: Tensor) -> Tensor:
    """Return (latent, width): Σ over a latent's entries of value × x[row], without gradient."""
    if x.is_cuda:
        return _triton().sum_latents(values, pattern, x)
    order, firsts, rows = pattern.transposed  # CSC: the entries by latent, the first of each latent, their rows
    values_by_latent = values.index_select(0, order)
    return embedding_bag(rows, x, firsts[:-1], mode="sum", per_sample_weights=values_by_latent)


class _PreactivationsAt(torch.autograd.Function):
    """:func:`preactivations_at` and its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, pattern: Pattern, known: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.pattern = pattern
        if known is None:
            return sddmm(x, weight, pattern, bias)
        return known.clone()  # autograd does not take an input itself for a new output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grads[0].contiguous()
        grad_x = _sum_rows(grad, ctx.pattern, weight) if ctx.needs_input_grad[0] else None  # rows seldom need one
        grad_weight = sum_latents(grad, ctx.pattern, x)
        grad_bias = torch.zeros(len(weight), device=grad.device).index_add_(0, ctx.pattern.latents, grad)
        return grad_x, grad_weight, grad_bias, None, None


class _Decode(torch.autograd.Function):
    """:func:`decode` and its gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, pattern: Pattern) -> Tensor:
        ctx.save_for_backward(values, weight)
        ctx.pattern = pattern
        return _sum_rows(values, pattern, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, weight = ctx.saved_tensors
        grad = grads[0].contiguous()
        grad_values = sddmm(grad, weight, ctx.pattern)
        grad_weight = sum_latents(values, ctx.pattern, grad)
        return grad_values, grad_weight, None


def preactivations_at(x: Tensor, weight: Tensor, bias: Tensor, pattern: Pattern, known: Tensor | None = None) -> Tensor:
    """Return x[row] · weight[latent] + bias[latent] for each entry, (entries,), with gradients to all three.

    Shapes are as in :func:`sddmm`. ``known``: the result, where it has been computed already; then only the gradients
    are computed.
    """
    values = _PreactivationsAt.apply(x, weight, bias, pattern, known)
    assert isinstance(values, Tensor)
    return values


def decode(values: Tensor, weight: Tensor, pattern: Pattern) -> Tensor:
    """Return (row, width): Σ over a row's entries of value × weight[latent], with gradients to both.

    ``values``: (entries,); ``weight``: (latent, width).
    """
    rows = _Decode.apply(values, weight, pattern)
    assert isinstance(rows, Tensor)
    return rows
