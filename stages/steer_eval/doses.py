"""What steering does to the model's predictions, text by text.

promoted   mean over the latent's promoted tokens and the scored positions of log p′(token) − log p(token)
follows    the same over the tokens that follow where the latent is strongest
kl         mean over the scored positions of KL(p ‖ p′), in nats: what it costs

with p the model's own predictions and p′ those under steering.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages import resume
from stages.lm import LanguageModel, final_states, logits, shared_start
from stages.steer_eval.conditions import Condition, Place
from stages.steer_eval.texts import Texts

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
        part = texts.part(first, first + batch)
        ids = part.tokens.to(place.lm.device)

        @cache  # a batch whose conditions are all kept needs no pass of the model without steering
        def before(part: Texts = part, ids: Tensor = ids) -> _Predictions:
            return _Predictions(place.lm, part, final_states(place.lm, ids))

        def measured(condition: Condition, wanted: Wanted, ids: Tensor = ids) -> dict[str, Tensor]:
            moved = []
            for number in run:
                with condition.applied(place, strengths[number]):
                    after = final_states(place.lm, ids)
                moved.append(before().compared(after, wanted))
            return {"moved": torch.from_numpy(np.stack(moved))}  # (strength, 3, text)

        with shared_start(place.lm, place.layer):
            for number, (dose, (condition, wanted)) in enumerate(zip(found, steered, strict=True) if run else ()):
                path = work / "doses" / f"{first}-{number}.safetensors" if work else None
                moved = resume.once_tensors(path, partial(measured, condition, wanted))["moved"].numpy()
                for side, values in enumerate(dose):
                    values[run, first : first + batch] = moved[:, side]
                done(len(run))
    return found


class _Predictions:
    """What the model says at the scored positions of some texts, and how that differs from it under steering."""

    def __init__(self, lm: LanguageModel, texts: Texts, states: Tensor) -> None:
        self._lm, self._scored = lm, texts.scored
        self._text, self._texts = texts.scored.nonzero()[:, 0], len(texts)
        self._p = [scores.log_softmax(1) for scores in self._logits(states)]

    def _logits(self, states: Tensor) -> Iterator[Tensor]:
        for rows in states[self._scored.to(states.device)].split(HEADED):
            for scores in logits(self._lm, rows).split(ROWS):
                yield scores.float()

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
