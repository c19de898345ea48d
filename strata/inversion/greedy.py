"""Greedy coordinate gradient (Zou et al. 2023, arXiv 2307.15043), with an optional fluency term.

A prompt is changed one token at a time. The gradient names the tokens that promise most at each place; some of these
swaps are tried, and the best is kept if it improves the prompt.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from strata.inversion.knobs import Greedy
from strata.inversion.objective import Objective, embeddings, surprise
from strata.inversion.vocabulary import Vocabulary

JUDGED = 2  # swaps of a step for which the whole model runs, where fluency counts


@dataclass
class Climb:
    """The state of a search.

    ``prompt``: (token,) the best so far. ``h``: the latent's value at the last token of that prompt, before any
    threshold (see `objective.py`). ``curve``: after each step, how often the model had run by then, and h. ``judged``:
    every swap whose cross-entropy was measured, with its h and its cross-entropy; the start is not among them.
    """

    prompt: Tensor
    h: float
    curve: list[tuple[int, float]] = field(default_factory=list)
    judged: list[tuple[Tensor, float, float]] = field(default_factory=list)


def greedy(
    objective: Objective, vocabulary: Vocabulary, start: Tensor, knobs: Greedy, fluency: float, rng: torch.Generator
) -> Climb:
    """Climb from ``start`` (token,) on h / scale − ``fluency`` × cross-entropy.

    The scale is the latent's largest activation in the corpus, so that h / scale is about 1 for a good prompt. The
    cross-entropy is in nats a token. Only swaps that survive being written as text are tried (see `vocabulary.py`).
    """
    climb = Climb(start, float(objective.heights(start[None])))
    predicted = objective.predicted(start) if fluency else None
    value = climb.h / objective.scale - (fluency * surprise(predicted, start) if predicted is not None else 0)

    for _ in range(knobs.steps):
        swaps = _swaps(objective, vocabulary, climb.prompt, predicted, knobs, fluency, rng)
        swaps = swaps[vocabulary.survive(swaps)]
        heights = objective.heights(swaps)

        for number in heights.argsort(descending=True)[: JUDGED if fluency else 1].tolist():
            prompt, h, swap_predicted = swaps[number], float(heights[number]), None
            swap_value = h / objective.scale
            if fluency:
                swap_predicted = objective.predicted(prompt)
                cross_entropy = surprise(swap_predicted, prompt)
                climb.judged.append((prompt, h, cross_entropy))
                swap_value -= fluency * cross_entropy
            if swap_value > value:
                climb.prompt, climb.h, value, predicted = prompt, h, swap_value, swap_predicted
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
    """Draw variants of ``prompt`` (token,) with one token behind the prefix changed, (swap, token).

    At each place, the ``top`` tokens that promise most to first order are candidates. What a token promises is the
    slope of h, and with ``fluency`` also the token's own log-probability there. ``predicted``: (token, vocabulary)
    log-probabilities, None without fluency.
    """
    places = torch.arange(len(vocabulary.prefix), len(prompt), device=prompt.device)

    # (place, vocabulary) what each token promises; never one that is not allowed, or that stands there already.
    gain = promise(objective, objective.slope(prompt)[places])
    if predicted is not None:
        # predicted[i] is about token i itself, given those before it. Divided by the length, because the cross-entropy
        # is a mean over tokens. A head may have columns for padding, behind the rows of the table: they are cut off.
        gain = gain / objective.scale + fluency / len(prompt) * predicted[places, : gain.shape[1]]
    gain.masked_fill_(~vocabulary.allowed, -torch.inf)
    gain[torch.arange(len(places)), prompt[places]] = -torch.inf

    best = gain.topk(min(knobs.top, int(vocabulary.allowed.sum()))).indices
    chosen = torch.randint(best.numel(), (knobs.candidates,), generator=rng).unique().to(prompt.device)
    swaps = prompt.repeat(len(chosen), 1)
    swaps[torch.arange(len(chosen)), places[chosen // best.shape[1]]] = best.flatten()[chosen]
    return swaps


def promise(objective: Objective, slope: Tensor) -> Tensor:
    """Estimate what h would gain by each token, (place, vocabulary), up to a constant of the place.

    The estimate is of first order: it takes h to be as steep everywhere as ``slope`` (place, width) says.
    """
    rows, stretch = embeddings(objective.lm)  # stretch: what the model multiplies a row by (1 in most models)
    return (slope.to(rows.dtype) @ rows.T).float() * stretch
