"""What a sparsity rule is: which latents of a token are active, and what pushes them to be few.

A rule is an argument of the one `fit` loop. It is written for pre-activations h = y W_enc + b_enc, (row, latent).
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from strata.sae.engine.nonlinearity import Nonlinearity
from strata.sae.engine.pattern import Pattern
from strata.sae.engine.preactivations import Preactivations

START_ROWS = 512  # by which a rule places its first threshold


class Weights(Protocol):
    """What a rule sees of the autoencoder; shapes as in `strata/sae/training/autoencoder.py`."""

    encoder: nn.Parameter
    decoder: nn.Parameter
    b_enc: nn.Parameter
    b_dec: nn.Parameter

    decoder_activation: Nonlinearity
    given: bool  # the encoder, by the user: no rule may change it before the first step


@dataclass(frozen=True)
class Pass:
    """One forward pass: ``h`` and ``codes`` (entries,) at ``pattern``, the ``error`` and the ``residual`` y − ŷ.

    The error is Σ (y − ŷ)² over the batch, of a rule with nested reconstructions their mean; the residual is that of
    the whole and has no gradient.
    """

    y: Tensor
    pattern: Pattern
    h: Tensor
    codes: Tensor
    error: Tensor
    residual: Tensor


class Rule(nn.Module):
    """The defaults: nothing to start or to schedule, one reconstruction, no penalty. ``k``: see params.yaml."""

    k: int

    def start(self, weights: Weights, y: Tensor) -> None:
        """Fit what depends on the data to the first batch, (row, width)."""

    def schedule(self, done: float) -> None:
        """``done``: share of the training that lies behind."""

    def select(self, h: Preactivations) -> tuple[Pattern, Tensor]:
        """The entries that take part, and the exact h there."""
        raise NotImplementedError

    def codes(self, h: Tensor, pattern: Pattern, generator: torch.Generator) -> Tensor:
        """The codes at those entries, from exact h; gradients to h and to the rule's own parameters."""
        raise NotImplementedError

    def ends(self, latents: int) -> list[int]:
        """The prefixes of the latents that must reconstruct by themselves; the last is all of them."""
        return [latents]

    def penalty(self, weights: Weights, run: Pass, unit: float) -> Tensor | float:
        """What it adds to the loss. ``unit``: rows × width × variance, which turns a squared error into an fvu."""
        return 0.0

    def price(self, codes: Tensor, pattern: Pattern, unit: float) -> float | None:
        """What the finished SAE's ``codes`` (entries,) of held-out rows cost by the rule's own objective, its weight at
        its full height, in shares of the variance; None of a rule whose ``k`` sets how many latents are active.

        Codes and ``unit`` as in :meth:`penalty`. It chooses the checkpoint, see strata/verdict/targets.py.
        """
        return None

    def settled(self, weights: Weights) -> tuple[Tensor, Tensor, Tensor | None]:
        """Encoder, b_enc and θ of f = h · 1[h > θ]·1[h > 0], which does the same; θ None: the top ``k`` of a token."""
        raise NotImplementedError


def exact_above(h: Preactivations, low: Tensor) -> tuple[Pattern, Tensor]:
    """The entries above ``low``, () or (latent,), and the exact h there.

    An entry that the cheap product's rounding puts on the other side of ``low`` is missing, or there in excess.
    """
    pattern = h.choose(lambda block: block.above(low))
    return pattern, h.at(pattern)


@torch.no_grad()
def cut(weights: Weights, y: Tensor, per_row: float) -> Tensor:
    """The value that ``per_row`` entries of a row of h exceed, on average over the first rows of ``y``."""
    h = torch.addmm(weights.b_enc, y[:START_ROWS], weights.encoder.T)
    return h.flatten().kthvalue(max(1, h.numel() - round(per_row * len(h)))).values
