"""Sparsity rules: which latents of a token are active, and what pushes them to be few.

A rule is an argument of the one `fit` loop. Written for pre-activations h = x W_enc + b_enc, (row, latent), it gives

    select(h)          the pattern of entries worth computing, from a cheap bfloat16 h; no gradient
    codes(h, pattern)  the codes at those entries, from exact h; gradients to h and to the rule's own parameters
    penalty(...)       what it adds to the loss

and `settle`, which turns the trained rule into what inference needs: k, or a threshold a latent.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from stages.sae.kernels import Pattern, from_entries

RuleName = Literal["topk", "batchtopk", "jumprelu"]


class TopK(nn.Module):
    """z = relu(top-k of h by token). Gao et al. 2024, "Scaling and evaluating sparse autoencoders", eq. 4."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def start(self, h: Tensor) -> None:
        """Nothing to learn from the first batch."""

    def select(self, h: Tensor) -> Pattern:
        latents = h.topk(self.k, dim=1, sorted=False).indices.sort(dim=1).values
        starts = torch.arange(0, latents.numel() + 1, self.k, device=h.device)
        return Pattern(starts, latents.flatten(), h.shape[1])

    def codes(self, h: Tensor, pattern: Pattern) -> Tensor:
        return h.relu()

    def penalty(self, h: Tensor, pattern: Pattern) -> Tensor | float:
        return 0.0


class BatchTopK(TopK):
    """z = relu(the k × rows largest h of the batch). Bussmann et al. 2024, "BatchTopK sparse autoencoders", eq. 5.

    The cut is exact: a threshold guessed from the last batch leaves few survivors, and the top-k is taken among them.
    """

    GENEROSITY = 0.9  # the guess, as a share of the last cut; lower leaves more survivors and fails less often

    def __init__(self, k: int) -> None:
        super().__init__(k)
        self.register_buffer("guess", torch.tensor(0.0))
        self.guess: Tensor

    def select(self, h: Tensor) -> Pattern:
        wanted = self.k * len(h)
        flat = h.flatten()
        entries = above(flat, float(self.guess))
        if len(entries) < wanted:
            entries = above(flat, 0.0)
        values = flat[entries].float()
        if len(entries) > wanted:
            best = values.topk(wanted, sorted=False)
            self.guess.copy_(best.values.min() * self.GENEROSITY)
            entries = entries[best.indices.sort().values]
        return from_entries(entries // h.shape[1], entries % h.shape[1], h.shape)


class JumpReLU(nn.Module):
    """z = h · 1[h > θ], θ learned for each latent. Rajamanoharan et al. 2024, "Jumping ahead", eq. 4, 11, 12.

    The step has no gradient of its own; with a rectangle kernel of bandwidth ε as its surrogate,

        ∂z/∂θ = −(θ/ε) · 1[|h − θ| < ε/2]        ∂1[h > θ]/∂θ = −(1/ε) · 1[|h − θ| < ε/2].

    The penalty is (l0/k − 1)², the quadratic target of Gemma Scope 2, with l0 the mean of the batch: it asks for k
    active latents a token, not for as few as possible. Bandwidth is in units of h on the training scale.
    """

    def __init__(self, k: int, latents: int, bandwidth: float, coefficient: float) -> None:
        super().__init__()
        self.k, self.bandwidth, self.coefficient = k, bandwidth, coefficient
        self.threshold = nn.Parameter(torch.zeros(latents))

    @torch.no_grad()
    def start(self, h: Tensor) -> None:
        """Start where k latents a token are active: training is sparse from the first step."""
        wanted = self.k * len(h)
        cut = h.float().flatten().kthvalue(h.numel() - wanted).values
        self.threshold.fill_(float(cut.clamp(min=self.bandwidth)))

    def select(self, h: Tensor) -> Pattern:
        low = (self.threshold.detach() - self.bandwidth / 2).clamp(min=0)
        rows, latents = (h > low.to(h.dtype)).nonzero(as_tuple=True)
        return from_entries(rows, latents, h.shape)

    def codes(self, h: Tensor, pattern: Pattern) -> Tensor:
        return _Jump.apply(h, self.threshold.index_select(0, pattern.latents), self.bandwidth)  # pyright: ignore[reportReturnType]

    def penalty(self, h: Tensor, pattern: Pattern) -> Tensor:
        steps = _Step.apply(h, self.threshold.index_select(0, pattern.latents), self.bandwidth)
        assert isinstance(steps, Tensor)
        return self.coefficient * (steps.sum() / (pattern.rows * self.k) - 1).square()


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(h, threshold)
        ctx.bandwidth = bandwidth
        return h * (h > threshold)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        h, threshold = ctx.saved_tensors
        window = (h - threshold).abs() < ctx.bandwidth / 2
        return grads[0] * (h > threshold), -grads[0] * window * threshold / ctx.bandwidth, None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(h, threshold)
        ctx.bandwidth = bandwidth
        return (h > threshold).to(h.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        h, threshold = ctx.saved_tensors
        window = (h - threshold).abs() < ctx.bandwidth / 2
        return None, -grads[0] * window / ctx.bandwidth, None


Rule = TopK | JumpReLU


def above(values: Tensor, threshold: float) -> Tensor:
    """Indices of the entries of a flat tensor above a threshold that is not negative.

    For bfloat16 the bits are compared as integers, ten times faster: floats that are not negative are in the order of
    their bits, and negative ones have the sign bit.
    """
    if values.dtype is torch.bfloat16:
        bits = torch.tensor(threshold, dtype=torch.bfloat16).view(torch.int16)
        return (values.view(torch.int16) > int(bits)).nonzero().flatten()
    return (values > threshold).nonzero().flatten()
