"""Rules whose codes are made sparse by a penalty on their size: ReLU and gated."""

import torch
from torch import Tensor, nn

from strata.sae.engine.pattern import Pattern
from strata.sae.engine.preactivations import Preactivations
from strata.training.rules.base import Pass, Rule, Weights, cut, exact_above
from strata.training.rules.errors import squared_error

EDGE = 1e-6  # mean codes are kept this far from 0 and 1, where the divergence is infinite


class ReLU(Rule):
    """z = relu(h), with the penalty λ Σ z ‖W_dec row‖ a token. Bricken et al. 2023; weighted as Anthropic, April 2024.

    Decoder rows have norm 1 here, so the weighting needs no computation. Like the squared error, the penalty is divided
    by width × variance, so that λ, the ``coefficient``, means the same at any scale. λ rises linearly over the share
    ``warmup`` of the run, from the share ``delay`` on.

    With ``kl`` the penalty is λ · rows · Σ_j KL(ρ ‖ ρ̂_j) instead (Ng 2011, "Sparse autoencoder", section 2). ρ̂_j is the
    mean code of latent j over the batch, ρ = k / F, and both count as probabilities of Bernoulli variables. This draws
    every latent to the same mean.

    Biases start where ``k`` latents a token are active, so that codes are sparse from the first step. λ decides where
    l0 ends.
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
        """Return rows · Σ_j KL(ρ ‖ ρ̂_j) for ``codes`` (entries,)."""
        target = self.k / pattern.width  # ρ
        mean = codes.new_zeros(pattern.width).index_add(0, pattern.latents, codes) / pattern.rows  # ρ̂, (latent,)
        mean = mean.clamp(EDGE, 1 - EDGE)
        off = (1 - target) * ((1 - target) / (1 - mean)).log()
        return pattern.rows * (target * (target / mean).log() + off).sum()

    def settled(self, weights: Weights) -> tuple[Tensor, Tensor, Tensor]:
        return weights.encoder, weights.b_enc, torch.zeros_like(weights.b_enc)


class Gated(ReLU):
    """z = 1[h > 0] · relu(e^r h + c): h decides whether a latent is active, e^r h + c how strongly.

    Rajamanoharan et al. 2024, "Improving dictionary learning with gated sparse autoencoders", eq. 5 to 8, with
    c = b_mag − e^r b_gate. ``r`` and ``c``: (latent,).

    The penalty is λ Σ relu(h), plus the error of decode(relu(h)), which does not train the decoder. The finished SAE is
    the jumprelu e^r h + c with θ = c (section 3.2 of the paper). Its price is computed from the codes in place of
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
        decoder, b_dec = weights.decoder.detach(), weights.b_dec.detach()  # not trained by this error
        ends, kind = self.ends(len(decoder)), weights.decoder_activation
        error, _ = squared_error(run.h.relu(), decoder, b_dec, run.y, run.pattern, ends, kind)
        return super().penalty(weights, run, unit) + error / unit

    def settled(self, weights: Weights) -> tuple[Tensor, Tensor, Tensor]:
        gain = self.r.exp()
        return weights.encoder * gain[:, None], weights.b_enc * gain + self.c, self.c
