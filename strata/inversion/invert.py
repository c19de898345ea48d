"""Find prompts that maximise latents, and say what they are worth beside the corpus, random prompts and templates."""

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

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
from strata.sae.sae import SAE
from strata.seeds import generator

SEARCHES = ("greedy", "soft")  # the other methods are baselines
Row = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """A layer's ``sae``, the model whose activations it reads, what is known of its latents."""

    lm: LanguageModel
    sae: SAE
    latents: Latents


def invert(source: Source, maxima: dict[int, float], knobs: Invert, seed: int, work: Path) -> list[Row]:
    """What was found of each latent of ``maxima``; each is kept in ``work`` as soon as it is done."""
    meta, words = source.latents.meta, vocabulary(source.lm, knobs.keep_prefix, knobs.tokens)
    place, rng = (meta["hook"], meta["layer"]), generator(seed, "random")
    random = RandomSearch(words, source.sae, *place, list(maxima), knobs.tokens, rng)
    setting = Setting(source.latents, words, table_of(words), random, knobs, seed)
    found = []
    for latent, maximum in tqdm(maxima.items(), desc=f"invert {meta['layer']}", unit=" latents", disable=None):
        objective = Objective(source.lm, source.sae, *place, latent, maximum)
        found.append(resume.once_json(work / f"{latent}.json", partial(one, setting, objective, source.sae)))
    return found


def one(setting: Setting, objective: Objective, sae: SAE) -> Row:
    """All that was found of one latent: its prompts, measured again on their own text, and the curves."""
    prompts, curves = [], []
    for found in search(setting, objective):
        again = measured(setting.words, sae, objective.hook, objective.layer, objective.latent, found.prompt)
        whole = again.tokens == found.prompt.tolist()
        row = {"method": found.method, "start": found.start, "number": found.number, "calls": found.calls}
        cosines = found.cosines if whole else None
        prompts.append({**row, **asdict(again), "survived": whole, "cosines": cosines, "best": bool(found.curve)})
        curves += [{"method": found.method, "calls": calls, "activation": max(0.0, h)} for calls, h in found.curve]
    on = front([row["activation"] for row in prompts], [row["cross_entropy"] for row in prompts])
    for row, kept in zip(prompts, on, strict=True):
        row["front"] = kept
    return {
        "latent": objective.latent,
        "corpus_max": objective.scale,
        "calls": objective.calls,
        "prompts": prompts,
        "curves": _so_far(curves),
    }


def _so_far(points: list[Row]) -> list[Row]:
    """Points with the best of their method so far."""
    best: dict[str, float] = {}
    for point in points:
        point["activation"] = best[point["method"]] = max(point["activation"], best.get(point["method"], 0.0))
    return points


def report(layer: int, found: list[Row]) -> Row:
    """The numbers of a layer: its latents' best prompts, and how often these beat random search and the corpus."""
    rows = [summary(row) for row in found]
    shares = {
        name: sum(row[name] for row in rows) / len(rows) if rows else None for name in ("beats_random", "beats_corpus")
    }
    return {"layer": layer, "latents": rows, **shares}


def summary(found: Row) -> Row:
    """A latent's best prompt, beside what it has to beat. ``calls``: of all searches together, and of random search."""
    prompts = found["prompts"]
    best = max((row for row in prompts if row["method"] in SEARCHES), key=lambda row: row["activation"])
    others = {
        name: max((row["activation"] for row in prompts if row["method"] == name), default=None)
        for name in ("random", "template")
    }
    taken = ("text", "pieces", "values", "activation", "cross_entropy", "specificity", "method", "start")
    return {
        "latent": found["latent"],
        **{name: best[name] for name in taken},
        "corpus_max": found["corpus_max"],
        "ratio": best["activation"] / found["corpus_max"],
        **others,
        "calls": found["calls"],
        "beats_random": best["activation"] > others["random"],
        "beats_corpus": best["activation"] > found["corpus_max"],
    }
