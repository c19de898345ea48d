"""Find prompts that maximise latents, and compare them with the corpus, random prompts and templates."""

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from strata.interpretation.read import Latents
from strata.inversion.baselines import RandomSearch
from strata.inversion.front import front
from strata.inversion.knobs import Invert
from strata.inversion.measure import measured
from strata.inversion.objective import Objective
from strata.inversion.searches import Setting, search
from strata.inversion.soft import table_of
from strata.inversion.vocabulary import vocabulary
from strata.lm.model import LanguageModel
from strata.run import resume
from strata.run.progress import each
from strata.sae.sae import SAE
from strata.seeds import generator

SEARCHES = ("greedy", "soft")  # the other methods are baselines
Row = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """A layer's ``sae``, the language model whose activations it reads, and what interpret wrote about its latents."""

    lm: LanguageModel
    sae: SAE
    latents: Latents


def invert(source: Source, maxima: dict[int, float], knobs: Invert, seed: int, work: Path) -> list[Row]:
    """Search prompts for each latent of ``maxima``, which maps it to its largest activation in the corpus.

    Returns a row for each latent, as :func:`one` makes it. ``work``: a folder where each row is kept when it is done.
    """
    meta, words = source.latents.meta, vocabulary(source.lm, knobs.keep_prefix, knobs.tokens)
    hook, layer = meta["hook"], meta["layer"]
    random = RandomSearch(words, source.sae, hook, layer, list(maxima), knobs.tokens, generator(seed, "random"))
    setting = Setting(source.latents, words, table_of(words), random, knobs, seed)

    rows = []
    for latent, maximum in each(maxima.items(), "search prompts", "latents"):
        objective = Objective(source.lm, source.sae, hook, layer, latent, maximum)
        rows.append(resume.once_json(work / f"{latent}.json", partial(one, setting, objective, source.sae)))
    return rows


def one(setting: Setting, objective: Objective, sae: SAE) -> Row:
    """Run all searches for one latent: its prompts, measured again on their own text, and the searches' curves."""
    prompts, curves = [], []
    for result in search(setting, objective):
        reread = measured(setting.words, sae, objective.hook, objective.layer, objective.latent, result.prompt)
        survived = reread.tokens == result.prompt.tolist()
        prompts.append(
            {
                "method": result.method,
                "start": result.start,
                "number": result.number,
                "calls": result.calls,
                **asdict(reread),
                "survived": survived,
                "cosines": result.cosines if survived else None,  # they belong to the tokens of the search
                "best": bool(result.curve),
            }
        )
        curves += [{"method": result.method, "calls": calls, "activation": max(0.0, h)} for calls, h in result.curve]

    on_front = front([row["activation"] for row in prompts], [row["cross_entropy"] for row in prompts])
    for row, is_on in zip(prompts, on_front, strict=True):
        row["front"] = is_on
    return {
        "latent": objective.latent,
        "corpus_max": objective.scale,
        "calls": objective.calls,
        "prompts": prompts,
        "curves": _so_far(curves),
    }


def _so_far(points: list[Row]) -> list[Row]:
    """Replace the activation of each point by the best of its method so far."""
    best: dict[str, float] = {}
    for point in points:
        point["activation"] = best[point["method"]] = max(point["activation"], best.get(point["method"], 0.0))
    return points


def _rises(points: list[Row]) -> list[Row]:
    """Leave out the points of a curve that say nothing new: those between two with the same activation."""
    kept = []
    for method in dict.fromkeys(point["method"] for point in points):
        curve = [point for point in points if point["method"] == method]
        before = [None, *(point["activation"] for point in curve)]
        kept += [point for point, last in zip(curve, before, strict=False) if point["activation"] != last]
        if kept[-1] is not curve[-1]:
            kept.append(curve[-1])
    return kept


def report(layer: int, found: list[Row]) -> Row:
    """Summarise a layer: its latents' best prompts with the searches' curves, and how often these beat random search
    and the corpus.

    ``found``: a row for each latent, as :func:`one` makes it.
    """
    rows = [{**summary(row), "curves": _rises(row["curves"])} for row in found]
    shares = {
        name: sum(row[name] for row in rows) / len(rows) if rows else None for name in ("beats_random", "beats_corpus")
    }
    return {"layer": layer, "latents": rows, **shares}


def summary(found: Row) -> Row:
    """Summarise a latent: its best prompt, beside what that has to beat.

    ``calls``: what all searches cost together, which is also what random search may cost.
    """
    prompts = found["prompts"]
    best = max((row for row in prompts if row["method"] in SEARCHES), key=lambda row: row["activation"])
    baselines = {
        name: max((row["activation"] for row in prompts if row["method"] == name), default=None)
        for name in ("random", "template")
    }
    copied = ("text", "pieces", "values", "activation", "cross_entropy", "specificity", "method", "start")
    return {
        "latent": found["latent"],
        **{name: best[name] for name in copied},
        "corpus_max": found["corpus_max"],
        "ratio": best["activation"] / found["corpus_max"],
        **baselines,
        "calls": found["calls"],
        "beats_random": best["activation"] > baselines["random"],
        "beats_corpus": best["activation"] > found["corpus_max"],
    }
