"""Every way in which prompts of a latent are found, each from the same beginnings."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle

import torch
from torch import Tensor

from strata.interpretation.read import Latents
from strata.inversion.baselines import RandomSearch, templates
from strata.inversion.front import front
from strata.inversion.greedy import greedy
from strata.inversion.knobs import Invert
from strata.inversion.objective import Objective
from strata.inversion.soft import Table, soft
from strata.inversion.vocabulary import Vocabulary
from strata.seeds import generator

Point = tuple[int, float]  # calls, the best h after so many


@dataclass(frozen=True)
class Setting:
    """What the latents of a layer share. ``random``: the one stream of random prompts."""

    latents: Latents
    words: Vocabulary
    table: Table
    random: RandomSearch
    knobs: Invert
    seed: int


@dataclass(frozen=True)
class Found:
    """A ``prompt`` (token,) that a search ended with, not yet measured; or one on its front, without a ``curve``.

    ``start``: corpus, random, or None where there is no start; ``number``: which one. ``calls``: what that search cost,
    or all searches so far for random prompts. ``cosines``: (token,) of soft embeddings with the tokens.
    """

    method: str
    start: str | None
    number: int
    prompt: Tensor
    calls: int
    curve: Sequence[Point] = field(default_factory=list)
    cosines: list[float] | None = None


def search(setting: Setting, objective: Objective) -> list[Found]:
    """All searches of one latent, the random one last, which gets as many calls as the others had together."""
    starts, latent = setting.knobs.greedy.starts, objective.latent
    objective.calls += starts.pool
    ranking = setting.random.starts(starts.pool, latent, max(starts.random, setting.knobs.soft.starts))
    corpus = contexts(setting, latent)
    found = [Found("corpus", "corpus", 0, prompt, 0) for prompt in corpus[:1]]
    begun = {"corpus": corpus[: starts.corpus], "random": ranking[: starts.random]}
    all_starts = [(kind, number, prompt) for kind in begun for number, prompt in enumerate(begun[kind])]
    for start, weight in zip(all_starts, cycle(setting.knobs.greedy.fluency), strict=False):
        found += by_greedy(setting, objective, *start, weight)
    found += by_soft(setting, objective, ranking[: setting.knobs.soft.starts])
    found += by_templates(setting, objective)
    return [*found, by_random(setting, latent, objective.calls)]


def by_greedy(
    setting: Setting, objective: Objective, kind: str, number: int, start: Tensor, fluency: float
) -> list[Found]:
    """Where greedy search ends from one start, and what else its front holds."""
    knobs, before = setting.knobs.greedy, objective.calls
    rng = generator(setting.seed, objective.latent, kind, number)
    climb = greedy(objective, setting.words, start, knobs, fluency, rng)
    spent = objective.calls - before
    on = front([h for _, h, _ in climb.judged], [surprise for _, _, surprise in climb.judged])
    rest = [prompt for (prompt, _, _), kept in zip(climb.judged, on, strict=True) if kept]
    return [
        Found("greedy", kind, number, climb.prompt, spent, climb.curve),
        *(Found("greedy", kind, number, prompt, spent) for prompt in rest if not torch.equal(prompt, climb.prompt)),
    ]


def by_soft(setting: Setting, objective: Objective, starts: Tensor) -> list[Found]:
    """Where the search over embeddings ends from each start; all of them ran together."""
    if not len(starts):
        return []
    pool, before = setting.knobs.greedy.starts.pool, objective.calls
    drifts = soft(objective, setting.table, starts, setting.knobs.soft)
    spent = (objective.calls - before) // len(starts)
    return [
        Found("soft", "random", number, drift.prompt, spent, _after(drift.curve, pool - before), drift.cosines.tolist())
        for number, drift in enumerate(drifts)
    ]


def _after(curve: Sequence[Point], calls: int) -> list[Point]:
    """``curve`` that begins so many calls later."""
    return [(point + calls, h) for point, h in curve]


def by_templates(setting: Setting, objective: Objective) -> list[Found]:
    """The best of the templates over the latent's top tokens."""
    before, rows = objective.calls, setting.latents.table("tokens", filters=[("latent", "=", objective.latent)])
    assert rows is not None, "interpret always writes it"
    words = rows["piece"].to_pylist()[: setting.knobs.templates]
    best = templates(objective, setting.words, words, setting.knobs.tokens)
    return [] if best is None else [Found("template", None, 0, best, objective.calls - before)]


def by_random(setting: Setting, latent: int, calls: int) -> Found:
    """The best of as many random prompts as the other searches made ``calls``."""
    prompts, heights = setting.random.upto(calls, latent)
    best, curve = -torch.inf, []
    for number, h in enumerate(heights.tolist(), 1):
        if h > best or number == calls:
            best = max(best, h)
            curve.append((number, best))
    return Found("random", None, 0, prompts[heights.argmax()], calls, curve)


def contexts(setting: Setting, latent: int) -> list[Tensor]:
    """The latent's best corpus contexts, best first, cut to the tokens before and at the peak, behind the prefix.

    A shorter one has random tokens in front; one that does not survive being written down is left out.
    """
    filters = [("latent", "=", latent), ("kind", "=", "top")]
    shown = setting.latents.table("examples", ["rank", "position", "first", "tokens"], filters)
    assert shown is not None, "interpret always writes it"
    prefix = setting.words.prefix
    room, found = setting.knobs.tokens - len(prefix), []
    for row in sorted(shown.to_pylist(), key=lambda row: row["rank"]):
        end = row["position"] - row["first"] + 1
        cut = prefix.new_tensor(row["tokens"][max(0, end - room) : end])
        filler = setting.random.upto(row["rank"] + 1, latent)[0][-1]
        prompt = torch.cat([prefix, filler[len(prefix) :][: room - len(cut)], cut])
        if setting.words.survive(prompt[None]).all():
            found.append(prompt)
    return found
