"""Run every search for prompts of a latent, each from the same beginnings."""

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

Point = tuple[int, float]  # a number of calls, and the best h after them


@dataclass(frozen=True)
class Setting:
    """What the searches of all latents of a layer share. ``random``: the one stream of random prompts."""

    latents: Latents
    words: Vocabulary
    table: Table
    random: RandomSearch
    knobs: Invert
    seed: int


@dataclass(frozen=True)
class Found:
    """A ``prompt`` (token,) that a search found, before it is measured as text.

    It is the one that the search ended with, or another one on its Pareto front; that has no ``curve``. ``start``:
    corpus, random, or None where there is no start. ``number``: which start of that kind. ``calls``: what the search
    cost, or, for random prompts, what all others cost together. ``cosines``: (token,) of soft embeddings with the
    tokens.
    """

    method: str
    start: str | None
    number: int
    prompt: Tensor
    calls: int
    curve: Sequence[Point] = field(default_factory=list)
    cosines: list[float] | None = None


def search(setting: Setting, objective: Objective) -> list[Found]:
    """Run all searches for one latent. The random one comes last, with as many calls as the others had together."""
    starts, latent = setting.knobs.greedy.starts, objective.latent
    objective.calls += starts.pool  # the searches start from the best of these random prompts
    ranking = setting.random.starts(starts.pool, latent, max(starts.random, setting.knobs.soft.starts))
    corpus = contexts(setting, latent)

    results = [Found("corpus", "corpus", 0, prompt, 0) for prompt in corpus[:1]]
    prompts_of = {"corpus": corpus[: starts.corpus], "random": ranking[: starts.random]}
    all_starts = [(kind, number, prompt) for kind in prompts_of for number, prompt in enumerate(prompts_of[kind])]
    for (kind, number, prompt), fluency in zip(all_starts, cycle(setting.knobs.greedy.fluency), strict=False):
        results += by_greedy(setting, objective, kind, number, prompt, fluency)

    results += by_soft(setting, objective, ranking[: setting.knobs.soft.starts])
    results += by_templates(setting, objective)
    return [*results, by_random(setting, latent, objective.calls)]


def by_greedy(
    setting: Setting, objective: Objective, kind: str, number: int, start: Tensor, fluency: float
) -> list[Found]:
    """Search greedily from one start; return the prompt where it ends, and the others on its Pareto front.

    ``kind`` and ``number``: which start it is. ``start``: (token,).
    """
    knobs, before = setting.knobs.greedy, objective.calls
    rng = generator(setting.seed, objective.latent, kind, number)
    climb = greedy(objective, setting.words, start, knobs, fluency, rng)
    spent = objective.calls - before

    on_front = front([h for _, h, _ in climb.judged], [surprise for _, _, surprise in climb.judged])
    rest = [prompt for (prompt, _, _), is_on in zip(climb.judged, on_front, strict=True) if is_on]
    return [
        Found("greedy", kind, number, climb.prompt, spent, climb.curve),
        *(Found("greedy", kind, number, prompt, spent) for prompt in rest if not torch.equal(prompt, climb.prompt)),
    ]


def by_soft(setting: Setting, objective: Objective, starts: Tensor) -> list[Found]:
    """Search over embeddings from all ``starts`` (start, token) together; return the best prompt of each."""
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
    """Shift ``curve`` by so many ``calls``."""
    return [(point + calls, h) for point, h in curve]


def by_templates(setting: Setting, objective: Objective) -> list[Found]:
    """Find the best of the templates over the latent's top tokens; an empty list if there is none."""
    before, rows = objective.calls, setting.latents.table("tokens", filters=[("latent", "=", objective.latent)])
    assert rows is not None, "interpret always writes it"
    words = rows["piece"].to_pylist()[: setting.knobs.templates]
    best = templates(objective, setting.words, words, setting.knobs.tokens)
    return [] if best is None else [Found("template", None, 0, best, objective.calls - before)]


def by_random(setting: Setting, latent: int, calls: int) -> Found:
    """Find the best of ``calls`` random prompts, as many as the other searches made calls."""
    prompts, heights = setting.random.upto(calls, latent)
    best, curve = -torch.inf, []
    for number, h in enumerate(heights.tolist(), 1):
        if h > best or number == calls:
            best = max(best, h)
            curve.append((number, best))
    return Found("random", None, 0, prompts[heights.argmax()], calls, curve)


def contexts(setting: Setting, latent: int) -> list[Tensor]:
    """Make prompts of the latent's best corpus contexts, the best first: (token,) each.

    A prompt is the prefix, then the tokens before and at the peak. Where these are too few, random tokens stand before
    them. A prompt that does not survive being written as text is left out.
    """
    filters = [("latent", "=", latent), ("kind", "=", "top")]
    examples = setting.latents.table("examples", ["rank", "position", "first", "tokens"], filters)
    assert examples is not None, "interpret always writes it"

    prefix = setting.words.prefix
    room, prompts = setting.knobs.tokens - len(prefix), []
    for row in sorted(examples.to_pylist(), key=lambda row: row["rank"]):
        end = row["position"] - row["first"] + 1
        cut = prefix.new_tensor(row["tokens"][max(0, end - room) : end])
        filler = setting.random.upto(row["rank"] + 1, latent)[0][-1]
        prompt = torch.cat([prefix, filler[len(prefix) :][: room - len(cut)], cut])
        if setting.words.survive(prompt[None]).all():
            prompts.append(prompt)
    return prompts
