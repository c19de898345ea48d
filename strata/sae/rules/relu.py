"""Rules that an L1 penalty makes sparse."""

import torch
from torch import Tensor, nn

from strata.sae.engine.pattern import Pattern
from strata.sae.engine.preactivations import Preactivations
from strata.sae.rules.base import Pass, Rule, Weights, cut, exact_above
from strata.sae.rules.errors import squared_error

EDGE = 1e-6  # a mean code is held so far from 0 and 1, where the divergence is infinite


class ReLU(Rule):
    """z = relu(h), penalty λ Σ z ‖W_dec row‖ a token. Bricken et al. 2023; weighted as in Anthropic, April 2024.

    Decoder rows have norm 1 here, so that the weighting is there without being computed. λ is in units of an fvu: the
    penalty is divided by the width × variance like the squared error, so that λ means the same at any scale. λ rises
    linearly over the share ``warmup`` of the run, beginning at the share ``delay``.

    With ``kl`` the penalty is λ · rows · Σ_j KL(ρ ‖ ρ̂_j) instead, ρ̂_j the mean code of latent j over the batch and
    ρ = k / F, of Bernoulli variables (Ng 2011, "Sparse autoencoder", section 2): each latent is drawn to the same mean.

    Biases start where ``k`` latents a token are active, so that the work is sparse from the first step; where l0 ends
    is up to λ.
    """

    def __init__(self, k: int, coefficient: float, warmup: float, delay: float, kl: bool = False) -> None:
        super().__init__()
        self.k, self.coefficient, self.warmup, self.delay, self.kl = k, coefficient, warmup, delay, kl
        self.strength = 0.0

    @torch.no_grad()
    def start(self, weights: Weights, y: Tensor) -> None:
        if not weights.given:
            weights.b_enc.sub_(cut(weights, y, self.k).clamp(min=0))

    def schedule(self, done: float) -> None:
        rise = 1.0 if self.warmup == 0 else (done - self.delay) / self.warmup
        self.strength = self.coefficient * min(max(rise, 0.0), 1.0) * (done >= self.delay)

    def select(self, h: Preactivations) -> tuple[Pattern, Tensor]:
        return exact_above(h, torch.zeros((), device=h.y.device))

    def codes(self, h: Tensor, pattern: Pattern, generator: torch.Generator) -> Tensor:
        return h.relu()

    def penalty(self, weights: Weights, run: Pass, unit: float) -> Tensor:
        codes = run.h.relu()
        return self.strength * (self._divergence(codes, run.pattern) if self.kl else codes.sum()) / unit

    def price(self, codes: Tensor, pattern: Pattern, unit: float) -> float:
        return self.coefficient * float(self._divergence(codes, pattern) if self.kl else codes.sum()) / unit

    def _divergence(self, codes: Tensor, pattern: Pattern) -> Tensor:
        target = self.k / pattern.width
        mean = codes.new_zeros(pattern.width).index_add(0, pattern.latents, codes) / pattern.rows
        mean = mean.clamp(EDGE, 1 - EDGE)
        off = (1 - target) * ((1 - target) / (1 - mean)).log()
        return pattern.rows * (target * (target / mean).log() + off).sum()

    def settled(self, weights: Weights) -> tuple[Tensor, Tensor, Tensor]:
        return weights.encoder, weights.b_enc, torch.zeros_like(weights.b_enc)


class Gated(ReLU):
    """z = 1[h > 0] · relu(e^r h + c): h says whether, e^r h + c how much. Rajamanoharan et al. 2024, "Improving
    dictionary learning with gated sparse autoencoders", eq. 5 to 8, with c = b_mag − e^r b_gate.

    The penalty is λ Σ relu(h) and the error of decode(relu(h)) through a decoder that it does not train. It is the
    jumprelu e^r h + c with θ = c (the paper's section 3.2), and is stored as that. In its price the codes stand for
    relu(h).
    """

    def __init__(self, k: int, latents: int, coefficient: float, warmup: float, delay: float) -> None:
        super().__init__(k, coefficient, warmup, delay)
        self.r = nn.Parameter(torch.zeros(latents))
        self.c = nn.Parameter(torch.zeros(latents))

    def codes(self, h: Tensor, pattern: Pattern, generator: torch.Generator) -> Tensor:
        gain, offset = (p.index_select(0, pattern.latents) for p in (self.r, self.c))
        return (gain.exp() * h + offset).relu() * (h > 0)

    def penalty(self, weights: Weights, run: Pass, unit: float) -> Tensor:
        frozen = weights.decoder.detach(), weights.b_dec.detach()
        ends, kind = self.ends(len(weights.decoder)), weights.decoder_activation
        error, _ = squared_error(run.h.relu(), *frozen, run.y, run.pattern, ends, kind)
        return super().penalty(weights, run, unit) + error / unit

    def settled(self, weights: Weights) -> tuple[Tensor, Tensor, Tensor]:
        gain = self.r.exp()
        return weights.encoder * gain[:, None], weights.b_enc * gain + self.c, self.c
