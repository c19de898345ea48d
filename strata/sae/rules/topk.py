"""Rules with a fixed number of active latents: by token, by batch, and by batch in nested groups."""

import torch
from torch import Tensor

from strata.sae.engine.dispatch import largest
from strata.sae.engine.pattern import Pattern
from strata.sae.engine.preactivations import Preactivations
from strata.sae.rules.base import Rule, Weights, cut, exact_above


class TopK(Rule):
    """z = relu(top-k of h by token). Gao et al. 2024, "Scaling and evaluating sparse autoencoders", eq. 4."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def select(self, h: Preactivations) -> tuple[Pattern, Tensor]:
        spare = max(self.k // 4, 8)  # the cheap product may rank one of the k a little too low
        candidates = h.choose(lambda block: block.strongest(self.k + spare))
        return largest(candidates, h.at(candidates), self.k)

    def codes(self, h: Tensor, pattern: Pattern, generator: torch.Generator) -> Tensor:
        return h.relu()

    def settled(self, weights: Weights) -> tuple[Tensor, Tensor, Tensor | None]:
        return weights.encoder, weights.b_enc, None


class BatchTopK(TopK):
    """z = relu(the k × rows largest h of the batch). Bussmann et al. 2024, "BatchTopK sparse autoencoders", eq. 5.

    The cut is exact: what exceeds a share of the last batch's cut is few, and the top-k is taken among it. If that
    proves too little, a smaller share is tried.
    """

    SHARES = (0.9, 0.6, 0.3)  # then none; smaller ones leave more to look at and fail less often
    SURE = 1.03  # the cut must lie so far above where survivors begin, lest the cheap product has lost some

    def __init__(self, k: int) -> None:
        super().__init__(k)
        self.register_buffer("guess", torch.tensor(0.0))
        self.guess: Tensor

    def start(self, weights: Weights, y: Tensor) -> None:
        self.guess.copy_(cut(weights, y, self.k).clamp(min=0))

    def select(self, h: Preactivations) -> tuple[Pattern, Tensor]:
        for share in self.SHARES:
            low = self.guess * share
            pattern, values = self._largest_above(h, low)
            if len(values) == self.k * h.rows and values.min() > low * self.SURE:
                break
        else:
            pattern, values = self._largest_above(h, torch.zeros_like(self.guess))
        if len(values):
            self.guess.copy_(values.min())
        return pattern, values

    def _largest_above(self, h: Preactivations, low: Tensor) -> tuple[Pattern, Tensor]:
        survivors, values = exact_above(h, low)
        return largest(survivors, values, self.k * h.rows, together=True)

    def settled(self, weights: Weights) -> tuple[Tensor, Tensor, Tensor | None]:
        """The last batch's cut stands for θ; training settles it on the validation rows."""
        return weights.encoder, weights.b_enc, torch.full_like(weights.b_enc, float(self.guess))


class Matryoshka(BatchTopK):
    """BatchTopK whose prefixes reconstruct too: the error is the mean over ŷ_g = W_dec[:m_g]ᵀ z[:m_g] + b_dec.

    Bussmann et al. 2025, "Learning multi-level features with Matryoshka sparse autoencoders", eq. 4; groups end at
    ``ends``, m_1 < … < m_G = F. The first latents must do alone, so that they stay general when the rest specialises.
    """

    def __init__(self, k: int, ends: list[int]) -> None:
        super().__init__(k)
        self._ends = ends

    def ends(self, latents: int) -> list[int]:
        return self._ends
