"""What steering does to the model's predictions, text by text.

promoted   mean over the latent's promoted tokens and the scored positions of log p′(token) − log p(token)
follows    the same over the tokens that follow where the latent is strongest
kl         mean over the scored positions of KL(p ‖ p′), in nats: what it costs

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

HEADED = 256  # predictions made at a time, each time reading the whole head: 256 × 262,144 × 2 bytes = 134 MB
ROWS = 16  # of them compared at a time: 16 × 262,144 × 4 bytes = 17 MB
Floats = NDArray[np.float64]


class Wanted(NamedTuple):
    """Tokens whose probability is looked at, (token,) each."""

    promoted: Tensor
    follows: Tensor


class Dose(NamedTuple):
    """(strength, text) of one condition; NaN where there are no such tokens."""

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
    """The doses of each condition, with the tokens that are looked at; ``done`` is told how many passes are done.

    Strength 0 is not run: it is 0 in all three. Blocks below the layer run once for all conditions of a batch. What a
    condition does to a batch is kept in ``work``, and not made again where it is there.
    """
    run = [number for number, strength in enumerate(strengths) if strength]
    shape = len(strengths), len(texts)
    promoted, follows = (
        [np.full(shape, 0.0 if len(wanted[side]) else np.nan) for _, wanted in steered] for side in (0, 1)
    )
    found = [Dose(*both, np.zeros(shape)) for both in zip(promoted, follows, strict=True)]
    for first in range(0, len(texts), batch):
        predictions = _Predictions(place, texts.part(first, first + batch))
        with shared_start(place.lm, place.layer):
            for number, (dose, (condition, wanted)) in enumerate(zip(found, steered, strict=True) if run else ()):
                path = work / "doses" / f"{first}-{number}.safetensors" if work else None
                steer = partial(predictions.steered, condition, wanted, [strengths[at] for at in run])
                moved = resume.once_tensors(path, steer)["moved"].numpy()

                for side, values in enumerate(dose):
                    values[run, first : first + batch] = moved[:, side]
                done(len(run))
    return found


class _Predictions:
    """What the model says at the scored positions of some texts, and how that differs from it under steering."""

    def __init__(self, place: Place, texts: Texts) -> None:
        self._place, self._tokens, self._scored = place, texts.tokens.to(place.lm.device), texts.scored
        self._text, self._texts = texts.scored.nonzero()[:, 0], len(texts)

    @cached_property
    def _p(self) -> list[Tensor]:
        """Without steering: run when it is first asked for, because what is kept of a batch needs no pass."""
        return [scores.log_softmax(1) for scores in self._logits(final_states(self._place.lm, self._tokens))]

    def _logits(self, states: Tensor) -> Iterator[Tensor]:
        for rows in states[self._scored.to(states.device)].split(HEADED):
            for scores in logits(self._place.lm, rows).split(ROWS):
                yield scores.float()

    def steered(self, condition: Condition, wanted: Wanted, strengths: Sequence[float]) -> dict[str, Tensor]:
        """``moved``: (strength, 3, text), what each strength of a condition does."""
        moved = []
        for strength in strengths:
            with condition.applied(self._place, strength):
                after = final_states(self._place.lm, self._tokens)
            moved.append(self.compared(after, wanted))
        return {"moved": torch.from_numpy(np.stack(moved))}

    def compared(self, states: Tensor, wanted: Wanted) -> Floats:
        """(3, text), as :class:`Dose` orders them."""
        found: list[Tensor] = []
        for p, scores in zip(self._p, self._logits(states), strict=True):
            norm = scores.logsumexp(1)
            moved = [(scores[:, tokens] - p[:, tokens]).mean(1) - norm for tokens in wanted]
            kl = torch.linalg.vecdot(p.exp(), p - scores) + norm
            found.append(torch.stack([*moved, kl.clamp(min=0)]).double().cpu())
        values = torch.cat(found, 1).numpy()
        scored = np.bincount(self._text, minlength=self._texts)
        return np.stack([np.bincount(self._text, row, self._texts) for row in values]) / scored
