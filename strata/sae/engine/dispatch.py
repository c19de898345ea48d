"""Products that cost k, not F, on whatever device the codes are.

Two of them carry all of training, and each is the other's gradient:

    sampled(x, W, b) v[e]    = x[row(e)] · W[latent(e)] + b   the encoder, at the pattern only
    decode(v, W)     y[row]  = Σ_e v[e] W[latent(e)]          the decoder

Weights are (latent, width), so that a latent's weights are contiguous for both.
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
        found = choosing.largest(groups, pattern.starts.numpy(), pattern.latents.numpy(), values.numpy(), k)
        starts, latents, kept = map(torch.from_numpy, found)
        return Pattern(starts, latents, pattern.width), kept
    rows = values.reshape(1 if together else pattern.rows, -1)
    last = rows.topk(min(k, rows.shape[1]), dim=1).values[:, -1:]
    above, equal = rows > last, rows == last
    left = k - above.sum(1, keepdim=True)
    keep = ((above | (equal & (equal.cumsum(1) <= left))) & (rows > 0)).flatten()
    return pattern.keep(keep), values[keep]


def _triton() -> ModuleType:
    from strata.sae.engine import cuda  # Triton is there on Linux alone

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
