"""The interface of a sparsity rule. A rule says which latents of a token are active, and what keeps them few.

A rule is an argument of the one `fit` loop. It works on pre-activations h = y W_enc + b_enc, (row, latent).
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from strata.sae.engine.nonlinearity import Nonlinearity
from strata.sae.engine.pattern import Pattern
from strata.sae.engine.preactivations import Preactivations

START_ROWS = 512  # rows from which a rule takes its first threshold


class Weights(Protocol):
    """What a rule sees of the autoencoder. Shapes are as in `strata/training/autoencoder.py`."""

    encoder: nn.Parameter
    decoder: nn.Parameter
    b_enc: nn.Parameter
    b_dec: nn.Parameter

    decoder_activation: Nonlinearity
    given: bool  # True for an encoder that the user gave: no rule may change it before the first step


@dataclass(frozen=True)
class Pass:
    """One forward pass over a batch ``y`` (row, width).

    ``h`` and ``codes``: (entries,) at the entries of ``pattern``. ``error``: Σ (y − ŷ)² over the batch; for a rule with
    nested reconstructions, the mean of their errors. ``residual``: (row, width) y − ŷ of the whole reconstruction,
    without gradient.
    """

    y: Tensor
    pattern: Pattern
    h: Tensor
    codes: Tensor
    error: Tensor
    residual: Tensor


class Rule(nn.Module):
    """The base of all rules. By default nothing is started or scheduled, and there is one reconstruction, no penalty.

    ``k``: the number of active latents a token, as params.yaml explains.
    """

    k: int

    def start(self, weights: Weights, y: Tensor) -> None:
        """Fit what depends on the data to the first batch, ``y`` (row, width)."""

    def schedule(self, done: float) -> None:
        """Prepare for the next step. ``done``: the share of the training that is done."""

    def select(self, h: Preactivations) -> tuple[Pattern, Tensor]:
        """Return the entries that take part, and the exact h at each of them, (entries,)."""
        raise NotImplementedError

    def codes(self, h: Tensor, pattern: Pattern, generator: torch.Generator) -> Tensor:
        """Return the codes (entries,) from the exact ``h`` (entries,), with gradients to h and the rule's parameters.

        ``generator``: for rules that draw which latents are active.
        """
        raise NotImplementedError

    def ends(self, latents: int) -> list[int]:
        """Return the ends of the prefixes of latents that must reconstruct by themselves; the last is all latents."""
        return [latents]

    def penalty(self, weights: Weights, run: Pass, unit: float) -> Tensor | float:
        """Return what the rule adds to the loss.

        ``unit``: rows × width × variance, which turns a squared error into an fvu.
        """
        return 0.0

    def price(self, codes: Tensor, pattern: Pattern, unit: float) -> float | None:
        """Return what the ``codes`` (entries,) of a finished SAE on held-out rows cost by the rule's own objective.

        The price is a share of the variance, with the rule's coefficient at its full height. None for a rule whose
        ``k`` sets how many latents are active. Codes and ``unit`` are as in :meth:`penalty`. The price helps to choose
        the checkpoint; see strata/verdict/targets.py.
        """
        return None

    def settled(self, weights: Weights) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return encoder, b_enc and θ of the finished SAE f = h · 1[h > θ]·1[h > 0], which does the same as the rule.

        θ None means that the top ``k`` latents of a token are active instead.
        """
        raise NotImplementedError


def exact_above(h: Preactivations, low: Tensor) -> tuple[Pattern, Tensor]:
    """Return the entries above ``low``, () or (latent,), and the exact h at each of them, (entries,).

    The cheap product rounds. So an entry close to ``low`` may be missing, or may be present although it is below.
    """
    pattern = h.choose(lambda block: block.above(low))
    return pattern, h.at(pattern)


@torch.no_grad()
def cut(weights: Weights, y: Tensor, per_row: float) -> Tensor:
    """Return the value that on average ``per_row`` entries of a row of h exceed, over the first rows of ``y``."""
    h = torch.addmm(weights.b_enc, y[:START_ROWS], weights.encoder.T)
    return h.flatten().kthvalue(max(1, h.numel() - round(per_row * len(h)))).values
