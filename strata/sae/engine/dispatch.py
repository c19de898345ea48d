"""Products whose cost grows with the number of active latents, not of all latents, on the device of the codes.

All of training rests on two of them, and each is the gradient of the other:

    sampled(x, W, b) v[e]    = x[row(e)] · W[latent(e)] + b   the encoder, at the pattern only
    decode(v, W)     y[row]  = Σ_e v[e] W[latent(e)]          the decoder

Weights are (latent, width), so that for both products the weights of a latent are contiguous.
"""

from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from strata.sae.engine import choosing, products
from strata.sae.engine.pattern import Pattern


def fast_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the hardware multiplies it, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


def largest(pattern: Pattern, values: Tensor, k: int, together: bool = False) -> tuple[Pattern, Tensor]:
    """Return the entries with the ``k`` largest positive ``values`` (entries,) of each row, and these values.

    With ``together``, the ``k`` largest of all rows are taken. Of equal values, the first is taken. On devices other
    than a CPU all rows must have the same number of entries, unless they are taken together.
    """
    if values.device.type == "cpu":
        groups = np.array([0, pattern.rows]) if together else np.arange(pattern.rows + 1)
        chosen = choosing.largest(groups, pattern.starts.numpy(), pattern.latents.numpy(), values.numpy(), k)
        starts, latents, kept_values = map(torch.from_numpy, chosen)
        return Pattern(starts, latents, pattern.width), kept_values

    # Keep all values above the k-th largest of a group, and as many of those equal to it as there is room for.
    groups = values.reshape(1 if together else pattern.rows, -1)
    kth = groups.topk(min(k, groups.shape[1]), dim=1).values[:, -1:]
    above, equal = groups > kth, groups == kth
    left = k - above.sum(1, keepdim=True)
    keep = ((above | (equal & (equal.cumsum(1) <= left))) & (groups > 0)).flatten()
    return pattern.keep(keep), values[keep]


def _triton() -> ModuleType:
    """Import the products for CUDA, where they are needed."""
    from strata.sae.engine import cuda  # Triton exists for Linux only

    return cuda


def sample(x: Tensor, weight: Tensor, pattern: Pattern, bias: Tensor | None = None) -> Tensor:
    """Return x[row] · weight[latent] + bias[latent] for each entry, (entries,), without gradient.

    ``x``: (row, width); ``weight``: (latent, width); ``bias``: (latent,).
    """
    if x.is_cuda:
        return _triton().sample(x, weight, pattern, bias)
    bias = torch.zeros(pattern.width) if bias is None else bias
    arrays = (t.detach().contiguous().numpy() for t in (pattern.starts, pattern.latents, x, weight, bias))
    return torch.from_numpy(products.sample(*arrays))


def _sum_rows(values: Tensor, pattern: Pattern, weight: Tensor) -> Tensor:
    """Return (row, width): Σ over a row's entries of value × weight[latent], without gradient."""
    if weight.is_cuda:
        return _triton().sum_rows(values, pattern, weight)
    return embedding_bag(pattern.latents, weight, pattern.starts[:-1], mode="sum", per_sample_weights=values)


def sum_latents(values: Tensor, pattern: Pattern, x: Tensor) -> Tensor:
    """Return (latent, width): Σ over a latent's entries of value × x[row], without gradient."""
    if x.is_cuda:
        return _triton().sum_latents(values, pattern, x)
    order, firsts, rows = pattern.transposed
    return embedding_bag(rows, x, firsts[:-1], mode="sum", per_sample_weights=values.index_select(0, order))


class _Sampled(torch.autograd.Function):
    """:func:`sampled` and its gradients."""

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
        return sample(grad, weight, ctx.pattern), sum_latents(values, ctx.pattern, grad), None


def sampled(x: Tensor, weight: Tensor, bias: Tensor, pattern: Pattern, known: Tensor | None = None) -> Tensor:
    """Return x[row] · weight[latent] + bias[latent] for each entry, (entries,), with gradients to all three.

    Shapes are as in :func:`sample`. ``known``: the result, where it has been computed already; then only the gradients
    are computed.
    """
    values = _Sampled.apply(x, weight, bias, pattern, known)
    assert isinstance(values, Tensor)
    return values


def decode(values: Tensor, weight: Tensor, pattern: Pattern) -> Tensor:
    """Return (row, width): Σ over a row's entries of value × weight[latent], with gradients to both.

    ``values``: (entries,); ``weight``: (latent, width).
    """
    rows = _Decode.apply(values, weight, pattern)
    assert isinstance(rows, Tensor)
    return rows
