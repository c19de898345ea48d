"""Measure what steering does to the model's predictions, text by text.

promoted   mean of log p′(token) − log p(token) over the tokens that the latent's logit lens promotes
follows    the same mean over the tokens that come next after the peaks of the latent's strongest examples
kl         KL(p ‖ p′) in nats: the cost of steering

p is the model's own prediction and p′ the prediction under steering. All three are also means over the scored positions
of a text, which are its last few tokens (see texts.py).
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

# Positions whose logits are computed at a time, so that the LM head is read once for all of them. With Gemma's
# vocabulary that is 256 × 262,144 × 2 bytes = 134 MB.
LOGIT_ROWS = 256
# Of these positions, so many are compared at a time, in float32: 16 × 262,144 × 4 bytes = 17 MB.
COMPARED_ROWS = 16
Floats = NDArray[np.float64]


class TargetTokens(NamedTuple):
    """The ids of the tokens whose probability is measured, (token,) int64 each. Either may be empty.

    A token that is listed twice counts twice.
    """

    promoted: Tensor
    follows: Tensor


class Response(NamedTuple):
    """What one condition does at each strength: two effects and the cost, (strength, text) each.

    An effect is NaN where there are no target tokens of its kind.
    """

    promoted: Floats
    follows: Floats
    kl: Floats


@torch.inference_mode()
def responses(
    place: Place,
    texts: Texts,
    steered: Sequence[tuple[Condition, TargetTokens]],
    strengths: list[float],
    batch_size: int,
    on_passes: Callable[[int], object] = lambda passes: None,
    work: Path | None = None,
) -> list[Response]:
    """Measure the response to each condition, in the order of ``steered``.

    ``steered``: conditions, each with its target tokens. ``strengths``: multiples of what a condition does at strength
    1 (see :class:`Condition`). ``batch_size``: texts that run together. ``on_passes``: called after each condition of a
    batch, with its number of forward passes; they count also where a result was read from ``work``.

    ``work``: a folder that keeps the result of each condition and batch; a result that is there already is read, not
    computed. A result is named by its first text and its place in ``steered`` alone, so a folder serves only calls with
    the same arguments.

    Strength 0 is not run: its effects and its cost are 0. The blocks before the layer run once for all conditions of a
    batch.
    """
    nonzero = [number for number, strength in enumerate(strengths) if strength]
    strengths_run = [strengths[number] for number in nonzero]

    shape = len(strengths), len(texts)
    result = [
        Response(
            promoted=np.full(shape, 0.0 if len(target_tokens.promoted) else np.nan),
            follows=np.full(shape, 0.0 if len(target_tokens.follows) else np.nan),
            kl=np.zeros(shape),
        )
        for _, target_tokens in steered
    ]
    if not nonzero:
        return result

    for start in range(0, len(texts), batch_size):
        end = start + batch_size
        predictions = _Predictions(place, texts.part(start, end))

        # The blocks before the layer run in the first pass only. The other passes, steered or not, reuse their outputs.
        with shared_start(place.lm, place.layer):
            for number, (response, (condition, target_tokens)) in enumerate(zip(result, steered, strict=True)):
                path = work / "doses" / f"{start}-{number}.safetensors" if work else None
                measure = partial(predictions.steered, condition, target_tokens, strengths_run)
                moved = resume.once_tensors(path, measure)["moved"].numpy()  # (nonzero strength, 3, text)

                for column, values in enumerate(response):  # promoted, follows, kl
                    values[nonzero, start:end] = moved[:, column]
                on_passes(len(nonzero))
    return result


class _Predictions:
    """The model's predictions at the scored positions of some texts, and how steering changes them.

    Each text must have a scored position.
    """

    def __init__(self, place: Place, texts: Texts) -> None:
        self._place = place
        self._tokens = texts.tokens.to(place.lm.device)  # (text, position)
        self._scored = texts.scored  # (text, position) bool
        self._text_of = texts.scored.nonzero()[:, 0]  # (scored position,) the text that it is in
        self._text_count = len(texts)

    @cached_property
    def _log_p(self) -> list[Tensor]:
        """Log-probabilities at the scored positions without steering, in blocks (position, vocabulary).

        They are computed on first use, because a batch whose results were all kept needs no pass.
        """
        return [scores.log_softmax(1) for scores in self._logits(final_states(self._place.lm, self._tokens))]

    def _logits(self, states: Tensor) -> Iterator[Tensor]:
        """Yield the float32 logits at the scored positions, COMPARED_ROWS positions at a time.

        ``states``: (text, position, width).
        """
        for rows in states[self._scored.to(states.device)].split(LOGIT_ROWS):
            for scores in logits(self._place.lm, rows).split(COMPARED_ROWS):
                yield scores.float()

    def steered(
        self, condition: Condition, target_tokens: TargetTokens, strengths: Sequence[float]
    ) -> dict[str, Tensor]:
        """Return ``moved`` (strength, 3, text): what each strength of a condition does.

        It has a name because the files of resume.py hold tensors by name.
        """
        moved = []
        for strength in strengths:
            with condition.applied(self._place, strength):
                states = final_states(self._place.lm, self._tokens)
            moved.append(self.compared(states, target_tokens))
        return {"moved": torch.from_numpy(np.stack(moved))}

    def compared(self, states: Tensor, target_tokens: TargetTokens) -> Floats:
        """Compare predictions from ``states`` (text, position, width) with those without steering.

        Returns (3, text): promoted, follows and kl, as :class:`Response` orders them.
        """
        by_position: list[Tensor] = []  # (3, position) each
        for log_p, scores in zip(self._log_p, self._logits(states), strict=True):
            # log p′ = scores − norm. So the (position, vocabulary) matrix log p′ is never made.
            norm = scores.logsumexp(1)

            # log p′(token) − log p(token). The mean over no tokens is NaN, which is what Response promises.
            effects = [(scores[:, tokens] - log_p[:, tokens]).mean(1) - norm for tokens in target_tokens]

            # KL(p ‖ p′) = Σ p (log p − log p′) = Σ p (log p − scores) + norm. Rounding may take it below 0.
            kl = torch.linalg.vecdot(log_p.exp(), log_p - scores) + norm
            by_position.append(torch.stack([*effects, kl.clamp(min=0)]).double().cpu())

        # Average over the scored positions of each text.
        values = torch.cat(by_position, 1).numpy()  # (3, scored position)
        positions = np.bincount(self._text_of, minlength=self._text_count)
        sums = np.stack([np.bincount(self._text_of, row, self._text_count) for row in values])
        return sums / positions
