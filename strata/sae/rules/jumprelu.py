"""Rules with a learned threshold for each latent: by a straight-through gradient, or by reward."""

from typing import Any

import torch
from torch import Tensor, nn

from strata.sae.engine.pattern import Pattern
from strata.sae.engine.preactivations import Preactivations
from strata.sae.rules.base import Pass, Rule, Weights, cut, exact_above


class _Threshold(Rule):
    """``threshold`` (latent,), which starts where ``k`` latents a token are active: sparse from the first step."""

    def __init__(self, k: int, latents: int, bandwidth: float, reach: float) -> None:
        super().__init__()
        self.k, self.bandwidth, self.reach = k, bandwidth, reach
        self.threshold = nn.Parameter(torch.zeros(latents))

    @torch.no_grad()
    def start(self, weights: Weights, y: Tensor) -> None:
        self.threshold.fill_(float(cut(weights, y, self.k).clamp(min=self.bandwidth)))

    def select(self, h: Preactivations) -> tuple[Pattern, Tensor]:
        return exact_above(h, (self.threshold.detach() - self.reach).clamp(min=0))

    def settled(self, weights: Weights) -> tuple[Tensor, Tensor, Tensor]:
        return weights.encoder, weights.b_enc, self.threshold


class JumpReLU(_Threshold):
    """z = h · 1[h > θ], θ learned for each latent. Rajamanoharan et al. 2024, "Jumping ahead", eq. 4, 11, 12.

    The step has no gradient of its own; with a rectangle kernel of bandwidth ε as its surrogate,

        ∂z/∂θ = −(θ/ε) · 1[|h − θ| < ε/2]        ∂1[h > θ]/∂θ = −(1/ε) · 1[|h − θ| < ε/2].

    The penalty is (l0/k − 1)², the quadratic target of Gemma Scope 2, with l0 the mean of the batch: it asks for k
    active latents a token, not for as few as possible. Bandwidth is in units of h on the training scale.
    """

    def __init__(self, k: int, latents: int, bandwidth: float, coefficient: float) -> None:
        super().__init__(k, latents, bandwidth, reach=bandwidth / 2)
        self.coefficient = coefficient

    def codes(self, h: Tensor, pattern: Pattern, generator: torch.Generator) -> Tensor:
        return _Jump.apply(h, self.threshold.index_select(0, pattern.latents), self.bandwidth)  # pyright: ignore[reportReturnType]

    def penalty(self, weights: Weights, run: Pass, unit: float) -> Tensor:
        steps = _Step.apply(run.h, self.threshold.index_select(0, run.pattern.latents), self.bandwidth)
        assert isinstance(steps, Tensor)
        return self.coefficient * (steps.sum() / (run.pattern.rows * self.k) - 1).square()


class Reward(_Threshold):
    """Sparsity by reinforcement: a latent is active with probability p = σ((h − θ)/ε), and what earns reward is kept.

    z = m · relu(h), m ~ Bernoulli(p). A token's reward is

        R = −‖y − ŷ‖² / (width · variance) − λ Σ m + β · mean over its active latents of (1 − their share of the batch),

    and the gradient of E[R] by p is the score function's, (R − b) ∇ log π(m) (Williams 1992, eq. 4), with the mean
    reward of the batch as baseline b; h also learns from the error through z. Entries with p under 2 % are never drawn.
    At rest a latent is active where p > 1/2, that is h > θ.
    """

    REACH = 4.0  # in ε: σ(−4) = 0.018

    def __init__(self, k: int, latents: int, bandwidth: float, coefficient: float, diversity: float) -> None:
        super().__init__(k, latents, bandwidth, reach=self.REACH * bandwidth)
        self.coefficient, self.diversity = coefficient, diversity

    def codes(self, h: Tensor, pattern: Pattern, generator: torch.Generator) -> Tensor:
        drawn = torch.rand(h.shape, generator=generator, device=h.device) < self._logit(h, pattern).detach().sigmoid()
        return h.relu() * drawn

    def penalty(self, weights: Weights, run: Pass, unit: float) -> Tensor:
        pattern, drawn = run.pattern, run.codes.detach() > 0
        with torch.no_grad():
            reward = -run.residual.square().sum(1) * (pattern.rows / unit)
            counts = _by_row(drawn.float(), pattern)
            share = torch.bincount(pattern.latents[drawn], minlength=pattern.width) / pattern.rows
            novelty = _by_row(drawn * (1 - share[pattern.latents]), pattern) / counts.clamp(min=1)
            reward += self.diversity * novelty - self.coefficient * counts
            advantage = reward - reward.mean()
        logit = self._logit(run.h, pattern)
        log_probability = nn.functional.logsigmoid(torch.where(drawn, logit, -logit))
        return -(advantage[pattern.row_of] * log_probability).sum() / pattern.rows

    def price(self, codes: Tensor, pattern: Pattern, unit: float) -> float:
        return self.coefficient * len(codes) / pattern.rows

    def _logit(self, h: Tensor, pattern: Pattern) -> Tensor:
        return (h - self.threshold.index_select(0, pattern.latents)) / self.bandwidth


def _by_row(values: Tensor, pattern: Pattern) -> Tensor:
    return torch.zeros(pattern.rows, device=values.device).index_add_(0, pattern.row_of, values)


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
