"""Greedy coordinate gradient (Zou et al. 2023, arXiv 2307.15043), with an optional fluency term.

A prompt is changed one token at a time: the gradient names the tokens that promise most at each place, some of these
swaps are tried, and the best is kept if it is better.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from strata.inversion.knobs import Greedy
from strata.inversion.objective import Objective, embeddings, surprise
from strata.inversion.vocabulary import Vocabulary

JUDGED = 2  # of a step's swaps, how many are read by the whole model when fluency counts


@dataclass
class Climb:
    """Where a search has come to: its best ``prompt`` (token,) and that one's ``h``. ``curve``: h after so many calls.
    ``judged``: every prompt whose cross-entropy was measured, with h and cross-entropy."""

    prompt: Tensor
    h: float
    curve: list[tuple[int, float]] = field(default_factory=list)
    judged: list[tuple[Tensor, float, float]] = field(default_factory=list)


def greedy(
    objective: Objective, vocabulary: Vocabulary, start: Tensor, knobs: Greedy, fluency: float, rng: torch.Generator
) -> Climb:
    """Climb from ``start`` (token,) on h / scale − ``fluency`` × cross-entropy. Only swaps that survive are tried."""
    climb = Climb(start, float(objective.heights(start[None])))
    predicted = objective.predicted(start) if fluency else None
    value = climb.h / objective.scale - (fluency * surprise(predicted, start) if predicted is not None else 0)
    for _ in range(knobs.steps):
        tried = _swaps(objective, vocabulary, climb.prompt, predicted, knobs, fluency, rng)
        tried = tried[vocabulary.survive(tried)]
        heights = objective.heights(tried)
        for place in heights.argsort(descending=True)[: JUDGED if fluency else 1].tolist():
            prompt, h, guess = tried[place], float(heights[place]), None
            found = h / objective.scale
            if fluency:
                guess = objective.predicted(prompt)
                climb.judged.append((prompt, h, surprise(guess, prompt)))
                found -= fluency * climb.judged[-1][2]
            if found > value:
                climb.prompt, climb.h, value, predicted = prompt, h, found, guess
        climb.curve.append((objective.calls, climb.h))
    return climb


def _swaps(
    objective: Objective,
    vocabulary: Vocabulary,
    prompt: Tensor,
    predicted: Tensor | None,
    knobs: Greedy,
    fluency: float,
    rng: torch.Generator,
) -> Tensor:
    """(swap, token) ``prompt`` with one token changed, behind the prefix.

    The best ``top`` at each place are those that promise most to first order: by the slope of h, and with ``fluency``
    by the token's own log-probability there.
    """
    places = torch.arange(len(vocabulary.prefix), len(prompt), device=prompt.device)
    gain = promise(objective, objective.slope(prompt)[places])
    if predicted is not None:
        gain = gain / objective.scale + fluency / len(prompt) * predicted[places, : gain.shape[1]]
    gain.masked_fill_(~vocabulary.allowed, -torch.inf)
    gain[torch.arange(len(places)), prompt[places]] = -torch.inf
    best = gain.topk(min(knobs.top, int(vocabulary.allowed.sum()))).indices
    chosen = torch.randint(best.numel(), (knobs.candidates,), generator=rng).unique().to(prompt.device)
    swaps = prompt.repeat(len(chosen), 1)
    swaps[torch.arange(len(chosen)), places[chosen // best.shape[1]]] = best.flatten()[chosen]
    return swaps


def promise(objective: Objective, slope: Tensor) -> Tensor:
    """(place, vocabulary) what h would gain by each token, up to a constant, were it as steep all the way."""
    rows, stretch = embeddings(objective.lm)
    return (slope.to(rows.dtype) @ rows.T).float() * stretch
