"""Rules that learn a threshold for each latent, by a straight-through gradient or by reward."""

from typing import Any

import torch
from torch import Tensor, nn

from strata.sae.engine import dispatch
from strata.sae.engine.nonlinearity import pull
from strata.sae.engine.pattern import Pattern
from strata.sae.engine.preactivations import Preactivations
from strata.training.rules.base import Pass, Rule, Weights, cut, exact_above


class _Threshold(Rule):
    """The base of rules with a learned ``threshold`` (latent,).

    It starts where ``k`` latents a token are active, so that codes are sparse from the first step. Entries down to
    ``reach`` below the threshold take part, because they too have a gradient or a chance to be active.
    """

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
    """z = h · 1[h > θ], with θ learned for each latent. Rajamanoharan et al. 2024, "Jumping ahead", eq. 4, 11, 12.

    The step has no gradient of its own. A rectangle kernel of bandwidth ε stands in for it:

        ∂z/∂θ = −(θ/ε) · 1[|h − θ| < ε/2]        ∂1[h > θ]/∂θ = −(1/ε) · 1[|h − θ| < ε/2].

    The penalty is ``coefficient`` × (l0/k − 1)², the quadratic target of Gemma Scope 2, with l0 the mean of the batch.
    It asks for k active latents a token, not for as few as possible. The bandwidth is in units of h on the training
    scale.
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
    """Sparsity by reinforcement learning: a latent is active with probability p = σ((h − θ)/ε).

    z = m · a with a = relu(h) and m drawn from Bernoulli(p). The reward of a token is

        R = −‖y − ŷ‖² / (width · variance) − λ Σ m + β · mean over its active latents of (1 − their share of the batch),

    with λ the ``coefficient`` and β the ``diversity``. The gradient of E[R] by p_j is what latent j adds to the reward,
    in the mean over the other latents (Titsias & Lázaro-Gredilla 2015, "Local expectation gradients", eq. 6):

        ∂E[R]/∂p_j = E[ R(m_j = 1) − R(m_j = 0) ].

    One drawing of the others gives an estimate without bias. Both rewards are known without a second pass: with d_j the
    decoder row and q = (y − ŷ) · d_j + m_j a_j ‖d_j‖², the product of d_j and what ŷ without latent j leaves, latent j
    lowers the squared error by 2 a_j q − a_j² ‖d_j‖². Decoders that end in tanh or sigmoid have no such form; there the
    estimate is of first order. The shares of the batch count as fixed.

    h also learns from the error through z. Entries with p under 2 % are never drawn. In the finished SAE a latent is
    active where p > 1/2, that is, where h > θ.
    """

    REACH = 4.0  # in ε: σ(−4) = 0.018

    def __init__(self, k: int, latents: int, bandwidth: float, coefficient: float, diversity: float) -> None:
        super().__init__(k, latents, bandwidth, reach=self.REACH * bandwidth)
        self.coefficient, self.diversity = coefficient, diversity

    def codes(self, h: Tensor, pattern: Pattern, generator: torch.Generator) -> Tensor:
        drawn = torch.rand(h.shape, generator=generator, device=h.device) < self._logit(h, pattern).detach().sigmoid()
        return h.relu() * drawn

    def penalty(self, weights: Weights, run: Pass, unit: float) -> Tensor:
        probability = self._logit(run.h, run.pattern).sigmoid()
        return -(probability * self._gain(weights, run, unit)).sum() / run.pattern.rows

    @torch.no_grad()
    def _gain(self, weights: Weights, run: Pass, unit: float) -> Tensor:
        """Return R(m_j = 1) − R(m_j = 0) of each entry, (entries,), with the others as they were drawn."""
        pattern, drawn = run.pattern, (run.codes > 0).float()  # drawn: (entries,) m

        # What the latent takes off the squared error of its row.
        residual = pull(weights.decoder_activation, run.residual, run.y - run.residual)
        code = run.h.relu()
        lengths = weights.decoder.square().sum(1)[pattern.latents]  # ‖d_j‖²: 1, unless the encoder is frozen
        along = dispatch.sddmm(residual, weights.decoder, pattern) + drawn * code * lengths  # q
        gain = (2 * along - code * lengths) * code * (pattern.rows / unit)

        # The mean of 1 − share over the active latents of the row, with this latent and without it.
        share = torch.bincount(pattern.latents, drawn, minlength=pattern.width) / pattern.rows
        rarity = 1 - share[pattern.latents]
        others = _by_row(drawn, pattern)[pattern.row_of] - drawn
        others_rarity = _by_row(drawn * rarity, pattern)[pattern.row_of] - drawn * rarity
        novelty = (others_rarity + rarity) / (others + 1) - others_rarity / others.clamp(min=1)
        return gain - self.coefficient + self.diversity * novelty

    def price(self, codes: Tensor, pattern: Pattern, unit: float) -> float:
        return self.coefficient * len(codes) / pattern.rows

    def _logit(self, h: Tensor, pattern: Pattern) -> Tensor:
        """Return (h − θ)/ε, (entries,)."""
        return (h - self.threshold.index_select(0, pattern.latents)) / self.bandwidth


def _by_row(values: Tensor, pattern: Pattern) -> Tensor:
    """Sum the ``values`` (entries,) of each row, (row,)."""
    return torch.zeros(pattern.rows, device=values.device).index_add_(0, pattern.row_of, values)


class _Jump(torch.autograd.Function):
    """h · 1[h > θ] at each entry, with the surrogate gradient to θ; ``h`` and ``threshold``: (entries,)."""

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
    """1[h > θ] at each entry, with the surrogate gradient to θ alone; ``h`` and ``threshold``: (entries,)."""

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
