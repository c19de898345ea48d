"""Rules with a fixed number of active latents: by token, by batch, and by batch in nested groups."""

import torch
from torch import Tensor

from stages.sae.kernels import Pattern, above, decode, from_entries, kth, largest
from stages.sae.rules.base import Rule, Weights


class TopK(Rule):
    """z = relu(top-k of h by token). Gao et al. 2024, "Scaling and evaluating sparse autoencoders", eq. 4."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def select(self, h: Tensor) -> Pattern:
        latents = largest(h, self.k)
        starts = torch.arange(0, latents.numel() + 1, self.k, device=h.device)
        return Pattern(starts, latents.flatten(), h.shape[1])

    def codes(self, h: Tensor, pattern: Pattern, generator: torch.Generator) -> Tensor:
        return h.relu()

    def settled(self, weights: Weights) -> tuple[Tensor, Tensor, Tensor | None]:
        return weights.encoder, weights.b_enc, None


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
        entries = above(h, self.guess)
        if len(entries) < wanted:
            entries = above(h, torch.zeros_like(self.guess))
        if len(entries) > wanted:
            values = h.take(entries)
            cut = kth(values, wanted)
            keep = values > cut
            keep[(values == cut).nonzero().flatten()[: wanted - int(keep.sum())]] = True  # of equals, the first
            entries = entries[keep.nonzero().flatten()]
            self.guess.copy_(cut * self.GENEROSITY)
        return from_entries(entries, h.shape)

    def settled(self, weights: Weights) -> tuple[Tensor, Tensor, Tensor | None]:
        """The last batch's cut stands for θ; training settles it on the validation rows."""
        threshold = torch.full_like(weights.b_enc, float(self.guess) / self.GENEROSITY)
        return weights.encoder, weights.b_enc, threshold


class Matryoshka(BatchTopK):
    """BatchTopK whose prefixes reconstruct too: the error is the mean over ŷ_g = W_dec[:m_g]ᵀ z[:m_g] + b_dec.

    Bussmann et al. 2025, "Learning multi-level features with Matryoshka sparse autoencoders", eq. 4; groups end at
    ``ends``, m_1 < … < m_G = F. The first latents must do alone, so that they stay general when the rest specialises.
    """

    def __init__(self, k: int, ends: list[int]) -> None:
        super().__init__(k)
        self.ends = ends

    def outputs(self, weights: Weights, codes: Tensor, pattern: Pattern) -> list[Tensor]:
        output, found, first = weights.b_dec, [], 0
        for end in self.ends:
            inside = (pattern.latents >= first) & (pattern.latents < end)
            output = output + decode(codes[inside], weights.decoder, pattern.keep(inside))
            found.append(output)
            first = end
        return found
