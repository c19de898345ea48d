"""The error between a batch and its reconstructions ŷ = g(z[:, :end] W_dec[:end] + b_dec), one for each of ``ends``.

The error is the mean of Σ (y − ŷ)² over the reconstructions. Most rules have one reconstruction, from all latents. On a
CPU one loop decodes a row or a block of rows, compares it, and computes the gradient of its codes: `products.py`.
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
    """Return the error, with gradients to ``codes``, ``decoder`` and ``b_dec``, and the residual y − ŷ, which has none.

    ``codes``: (entries,), the entries of a row in the order of their latents. ``decoder``: (latent, width). ``b_dec``:
    (width,). ``y`` and the residual: (row, width). ``ends`` rise to the number of latents; the residual is that of the
    last reconstruction, from all latents.
    """
    if _fused(kind, y):
        error, residual = _Nested.apply(codes, decoder, b_dec, y, pattern, ends)  # pyright: ignore[reportGeneralTypeIssues]
        return error, residual
    residuals = [y - bend(kind, output) for output in outputs(codes, decoder, b_dec, pattern, ends)]
    return torch.stack([r.square().sum() for r in residuals]).mean(), residuals[-1].detach()


def _fused(kind: Nonlinearity, y: Tensor) -> bool:
    """Whether the loop of `products.py` can be used."""
    return kind == "identity" and y.device.type == "cpu"


def outputs(codes: Tensor, decoder: Tensor, b_dec: Tensor, pattern: Pattern, ends: list[int]) -> list[Tensor]:
    """Return z[:, :end] W_dec[:end] + b_dec, (row, width), for each of ``ends``."""
    output, nested_outputs, first_latent = b_dec, [], 0
    sizes = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
    for part in decoder.split(sizes):  # the gradient of a split takes one copy, that of slices one for each
        inside = (pattern.latents >= first_latent) & (pattern.latents < first_latent + len(part))
        group = pattern.keep(inside)
        output = output + decode(codes[inside], part, Pattern(group.starts, group.latents - first_latent, len(part)))
        nested_outputs.append(output)
        first_latent += len(part)
    return nested_outputs


class _Nested(torch.autograd.Function):
    """The error and the residual by `products.nested_residuals`, which also leaves what the gradients need."""

    @staticmethod
    def forward(
        ctx: Any, codes: Tensor, decoder: Tensor, b_dec: Tensor, y: Tensor, pattern: Pattern, ends: list[int]
    ) -> tuple[Tensor, Tensor]:
        below = torch.empty(len(ends), *y.shape)  # for each end, the sum of its residual and all later ones
        starts, latents = pattern.starts.numpy(), pattern.latents.numpy()
        values, weight, bias, rows = (t.detach().contiguous().numpy() for t in (codes, decoder, b_dec, y))
        errors, pulls = map(
            torch.from_numpy,
            products.nested_residuals(starts, latents, values, weight, bias, rows, np.array(ends), below.numpy()),
        )
        ctx.save_for_backward(codes, below, pulls)
        ctx.pattern, ctx.ends = pattern, ends
        residual = below[-1]
        ctx.mark_non_differentiable(residual)
        return errors.sum() / len(ends), residual

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        codes, below, pulls = ctx.saved_tensors
        _, needs_decoder, needs_b_dec, *_ = ctx.needs_input_grad
        slope = -2 * grads[0] / len(ctx.ends)  # of the mean of squares, by the residual
        to_codes = pulls * slope
        to_decoder = _by_latent(codes * slope, ctx.pattern, below, ctx.ends) if needs_decoder else None
        to_b_dec = below[0].sum(0) * slope if needs_b_dec else None
        return to_codes, to_decoder, to_b_dec, None, None, None


def _by_latent(values: Tensor, pattern: Pattern, below: Tensor, ends: list[int]) -> Tensor:
    """Return (latent, width): Σ over a latent's entries of value × below[g, row].

    g is the first group whose end is past the latent: that and all later reconstructions contain the latent.
    """
    if len(ends) == 1:
        return sum_latents(values, pattern, below[0])
    order, firsts, rows = pattern.transposed
    sizes = firsts[[0, *ends]].diff()  # entries of each group
    rows = rows + torch.repeat_interleave(torch.arange(len(ends)) * pattern.rows, sizes, output_size=len(order))
    values = values.index_select(0, order)
    return embedding_bag(rows, below.flatten(0, 1), firsts[:-1], mode="sum", per_sample_weights=values)
