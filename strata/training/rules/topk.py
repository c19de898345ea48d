"""Rules with a fixed number of active latents: in each token, in each batch, and in each batch with nested groups."""

import torch
from torch import Tensor

from strata.sae.engine.dispatch import largest
from strata.sae.engine.pattern import Pattern
from strata.sae.engine.preactivations import Preactivations
from strata.training.rules.base import Rule, Weights, cut, exact_above


class TopK(Rule):
    """z = relu(the k largest h of each token). Gao et al. 2024, "Scaling and evaluating sparse autoencoders", eq. 4."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def select(self, h: Preactivations) -> tuple[Pattern, Tensor]:
        # The cheap product rounds, and may rank one of the k a little too low: it proposes some more.
        spare = max(self.k // 4, 8)
        candidates = h.choose(lambda block: block.strongest(self.k + spare))
        return largest(candidates, h.at(candidates), self.k)

    def codes(self, h: Tensor, pattern: Pattern, generator: torch.Generator) -> Tensor:
        return h.relu()

    def settled(self, weights: Weights) -> tuple[Tensor, Tensor, Tensor | None]:
        return weights.encoder, weights.b_enc, None


class BatchTopK(TopK):
    """z = relu(the k × rows largest h of the batch). Bussmann et al. 2024, "BatchTopK sparse autoencoders", eq. 5.

    The cut is exact. The entries above a share of the last batch's cut are few, and the largest are taken from them. If
    these are too few, a smaller share is tried.
    """

    SHARES = (0.9, 0.6, 0.3)  # and 0 last; a smaller share leaves more entries to look at, and fails less often
    SURE = 1.03  # the cut must be so many times the lower bound, so that the cheap product has lost none above the cut

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

        # The smallest value kept is the cut, and the guess for the next batch.
        if len(values):
            self.guess.copy_(values.min())
        return pattern, values

    def _largest_above(self, h: Preactivations, low: Tensor) -> tuple[Pattern, Tensor]:
        """Return the k × rows largest entries above ``low``, or all of them where there are fewer, and their values."""
        survivors, values = exact_above(h, low)
        return largest(survivors, values, self.k * h.rows, together=True)

    def settled(self, weights: Weights) -> tuple[Tensor, Tensor, Tensor | None]:
        """Take the last batch's cut as θ, for now: training settles θ on the validation rows."""
        return weights.encoder, weights.b_enc, torch.full_like(weights.b_enc, float(self.guess))


class Matryoshka(BatchTopK):
    """BatchTopK whose prefixes reconstruct, too. The error is the mean over ŷ_g = W_dec[:m_g]ᵀ z[:m_g] + b_dec.

    Bussmann et al. 2025, "Learning multi-level features with Matryoshka sparse autoencoders", eq. 4. Prefixes end at
    ``ends``, m_1 < … < m_G = F. The first latents must reconstruct alone, so that they stay general while the others
    specialise.
    """

    def __init__(self, k: int, ends: list[int]) -> None:
        super().__init__(k)
        self._ends = ends

    def ends(self, latents: int) -> list[int]:
        return self._ends
