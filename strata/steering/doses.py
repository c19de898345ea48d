"""Measure what steering does to the model's predictions, text by text.

promoted   mean over the latent's promoted tokens and the scored positions of log p′(token) − log p(token)
follows    the same mean over the tokens that follow where the latent is strongest
kl         mean over the scored positions of KL(p ‖ p′), in nats: the cost of steering

with p the model's own predictions and p′ those under steering.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strata.lm.model import final_states, logits, shared_start
from strata.run import resume
from strata.steering.conditions import Condition, Place
from strata.steering.texts import Texts

# Predictions that are made at a time, for which the whole head is read once: 256 × 262,144 × 2 bytes = 134 MB.
HEADED = 256
ROWS = 16  # of these, predictions that are compared at a time: 16 × 262,144 × 4 bytes = 17 MB
Floats = NDArray[np.float64]


class Wanted(NamedTuple):
    """The tokens whose probability is measured, (token,) each."""

    promoted: Tensor
    follows: Tensor


class Dose(NamedTuple):
    """The effects and the cost of one condition, (strength, text) each; NaN where there are no such tokens."""

    promoted: Floats
    follows: Floats
    kl: Floats


@torch.inference_mode()
def doses(
    place: Place,
    texts: Texts,
    steered: Sequence[tuple[Condition, Wanted]],
    strengths: list[float],
    batch: int,
    done: Callable[[int], object] = lambda passes: None,
    work: Path | None = None,
) -> list[Dose]:
    """Measure the doses of each condition, in the order of ``steered``.

    ``steered``: conditions, each with the tokens whose probability is measured. ``batch``: texts that run together.
    ``done``: called after each condition of a batch, with how many passes that took. ``work``: a folder where the
    result of each condition and batch is kept, and from where it is taken if it is there.

    Strength 0 is not run: its effects and its cost are 0. The blocks below the layer run once for all conditions of a
    batch.
    """
    nonzero = [number for number, strength in enumerate(strengths) if strength]
    strengths_run = [strengths[number] for number in nonzero]

    shape = len(strengths), len(texts)
    result = [
        Dose(
            promoted=np.full(shape, 0.0 if len(wanted.promoted) else np.nan),
            follows=np.full(shape, 0.0 if len(wanted.follows) else np.nan),
            kl=np.zeros(shape),
        )
        for _, wanted in steered
    ]
    if not nonzero:
        return result

    for first in range(0, len(texts), batch):
        predictions = _Predictions(place, texts.part(first, first + batch))
        with shared_start(place.lm, place.layer):
            for number, (dose, (condition, wanted)) in enumerate(zip(result, steered, strict=True)):
                path = work / "doses" / f"{first}-{number}.safetensors" if work else None
                steer = partial(predictions.steered, condition, wanted, strengths_run)
                moved = resume.once_tensors(path, steer)["moved"].numpy()  # (strength, 3, text)

                for side, values in enumerate(dose):
                    values[nonzero, first : first + batch] = moved[:, side]
                done(len(nonzero))
    return result


class _Predictions:
    """The model's predictions at the scored positions of some texts, and how steering changes them."""

    def __init__(self, place: Place, texts: Texts) -> None:
        self._place, self._texts = place, len(texts)
        self._tokens, self._scored = texts.tokens.to(place.lm.device), texts.scored
        self._text = texts.scored.nonzero()[:, 0]  # (scored position,) the text that it is in

    @cached_property
    def _p(self) -> list[Tensor]:
        """Log-probabilities without steering, in blocks (position, vocabulary).

        Computed on first use, because a batch whose results were all kept needs no pass.
        """
        return [scores.log_softmax(1) for scores in self._logits(final_states(self._place.lm, self._tokens))]

    def _logits(self, states: Tensor) -> Iterator[Tensor]:
        """Yield the logits at the scored positions, ROWS positions at a time. ``states``: (text, position, width)."""
        for rows in states[self._scored.to(states.device)].split(HEADED):
            for scores in logits(self._place.lm, rows).split(ROWS):
                yield scores.float()

    def steered(self, condition: Condition, wanted: Wanted, strengths: Sequence[float]) -> dict[str, Tensor]:
        """Return ``moved`` (strength, 3, text): what each strength of a condition does."""
        moved = []
        for strength in strengths:
            with condition.applied(self._place, strength):
                after = final_states(self._place.lm, self._tokens)
            moved.append(self.compared(after, wanted))
        return {"moved": torch.from_numpy(np.stack(moved))}

    def compared(self, states: Tensor, wanted: Wanted) -> Floats:
        """Compare predictions from ``states`` (text, position, width) with those without steering.

        Returns (3, text): promoted, follows and kl, as :class:`Dose` orders them.
        """
        by_position: list[Tensor] = []  # (3, position) each
        for p, scores in zip(self._p, self._logits(states), strict=True):
            norm = scores.logsumexp(1)  # log p′ = scores − norm
            effects = [(scores[:, tokens] - p[:, tokens]).mean(1) - norm for tokens in wanted]
            kl = torch.linalg.vecdot(p.exp(), p - scores) + norm
            by_position.append(torch.stack([*effects, kl.clamp(min=0)]).double().cpu())

        # The mean over the scored positions of each text.
        values = torch.cat(by_position, 1).numpy()
        scored = np.bincount(self._text, minlength=self._texts)
        return np.stack([np.bincount(self._text, row, self._texts) for row in values]) / scored
