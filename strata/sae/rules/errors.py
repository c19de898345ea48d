"""How far a batch is from its reconstructions ŷ_g = g(z[:, :end] W_dec[:end] + b_dec), one for each of ``ends``.

The error is the mean of Σ (y − ŷ_g)² over them; most rules have one, of all latents. On a CPU a row, or a
block of rows, is decoded, compared and asked what its codes should have been in one go: `products.py`.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from strata.sae.engine import products
from strata.sae.engine.dispatch import decode, sum_latents
from strata.sae.engine.nonlinearity import Nonlinearity, bend
from strata.sae.engine.pattern import Pattern


def squared_error(
    codes: Tensor, decoder: Tensor, b_dec: Tensor, y: Tensor, pattern: Pattern, ends: list[int], kind: Nonlinearity
) -> tuple[Tensor, Tensor]:
    """The error, with gradients to ``codes``, ``decoder`` and ``b_dec``; and the whole residual y − ŷ, without.

    ``ends`` rise to the number of latents; a row's entries are in the order of their latents.
    """
    if _fused(kind, y):
        error, residual = _Nested.apply(codes, decoder, b_dec, y, pattern, ends)  # pyright: ignore[reportGeneralTypeIssues]
        return error, residual
    residuals = [y - bend(kind, output) for output in outputs(codes, decoder, b_dec, pattern, ends)]
    return torch.stack([r.square().sum() for r in residuals]).mean(), residuals[-1].detach()


def _fused(kind: Nonlinearity, y: Tensor) -> bool:
    return kind == "identity" and y.device.type == "cpu"


def outputs(codes: Tensor, decoder: Tensor, b_dec: Tensor, pattern: Pattern, ends: list[int]) -> list[Tensor]:
    """z[:, :end] W_dec[:end] + b_dec for each end, (row, width)."""
    output, found, first = b_dec, [], 0
    sizes = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
    for part in decoder.split(sizes):  # the backward of a split is one copy
        inside = (pattern.latents >= first) & (pattern.latents < first + len(part))
        group = pattern.keep(inside)
        output = output + decode(codes[inside], part, Pattern(group.starts, group.latents - first, len(part)))
        found.append(output)
        first += len(part)
    return found


class _Nested(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, codes: Tensor, decoder: Tensor, b_dec: Tensor, y: Tensor, pattern: Pattern, ends: list[int]
    ) -> tuple[Tensor, Tensor]:
        below = torch.empty(len(ends), *y.shape)
        starts, latents = pattern.starts.numpy(), pattern.latents.numpy()
        values, weight, bias, rows = (t.detach().contiguous().numpy() for t in (codes, decoder, b_dec, y))
        found = products.nested_residuals(starts, latents, values, weight, bias, rows, np.array(ends), below.numpy())
        errors, pulls = map(torch.from_numpy, found)
        ctx.save_for_backward(codes, below, pulls)
        ctx.pattern, ctx.ends = pattern, ends
        residual = below[-1]
        ctx.mark_non_differentiable(residual)
        return errors.sum() / len(ends), residual

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        codes, below, pulls = ctx.saved_tensors
        slope, (_, decoder, b_dec, *_) = -2 * grads[0] / len(ctx.ends), ctx.needs_input_grad
        to_decoder = _by_latent(codes * slope, ctx.pattern, below, ctx.ends) if decoder else None
        return pulls * slope, to_decoder, below[0].sum(0) * slope if b_dec else None, None, None, None


def _by_latent(values: Tensor, pattern: Pattern, below: Tensor, ends: list[int]) -> Tensor:
    """(latent, width): Σ over a latent's entries of value × below[g, row], g the first whose end is past the latent."""
    if len(ends) == 1:
        return sum_latents(values, pattern, below[0])
    order, firsts, rows = pattern.transposed
    sizes = firsts[[0, *ends]].diff()  # entries of each group
    rows = rows + torch.repeat_interleave(torch.arange(len(ends)) * pattern.rows, sizes, output_size=len(order))
    values = values.index_select(0, order)
    return embedding_bag(rows, below.flatten(0, 1), firsts[:-1], mode="sum", per_sample_weights=values)
