"""Steer with some latents of a layer, and hold each against what anyone might have tried instead."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from tqdm import tqdm

from strata.interpretation.read import Latents
from strata.lm.model import LanguageModel
from strata.rows.shards import Activations, Contexts
from strata.run import files, resume
from strata.sae.sae import SAE
from strata.seeds import generator
from strata.steering import texts as prompts_of
from strata.steering.conditions import LATENT, Condition, Place, conditions, difference
from strata.steering.doses import Dose, Wanted, doses
from strata.steering.knobs import SteerEval
from strata.steering.summary import best, compared, drawn, monotone
from strata.steering.texts import Texts
from strata.steering.write import generate, read_back
from strata.tables import parquet

SHORT, WORD, REAL = pa.int32(), pa.string(), pa.float64()
DOSES = pa.schema(
    {
        "latent": SHORT, "condition": WORD, "strength": REAL, "prompt": SHORT,
        "promoted": REAL, "follows": REAL, "kl": REAL,
    }
)  # fmt: skip
WRITTEN = pa.schema(
    {
        "latent": SHORT, "condition": WORD, "strength": REAL, "prompt": WORD, "text": WORD,
        "fires": REAL, "code": REAL, "perplexity": REAL, "repetition": REAL,
    }
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A layer's rows, the text they are of, its latents, the model; ``chosen``: latent -> its largest code."""

    activations: Activations
    contexts: Contexts
    latents: Latents
    chosen: dict[int, float]
    lm: LanguageModel


def applicable(latents: Latents) -> bool:
    """Whether interpret could tell what its latents promote: without that there is no effect to look for."""
    table = latents.table("logits", ["latent"])
    return table is not None and table.num_rows > 0


def steer_eval(
    sae: SAE, source: Source, knobs: SteerEval, seed: int, folder: Path, work: Path | None = None
) -> dict[str, Any]:
    """Write `data/steered/<L>/` into ``folder``; return the report's numbers. ``work``: where unfinished work is kept,
    by latent."""
    meta, lm = source.latents.meta, source.lm
    place = Place(lm, sae, meta["layer"], meta["hook"])
    count = len(knobs.texts) + knobs.generate.prompts
    sizes = knobs.prompts, knobs.tokens, knobs.scored, knobs.generate.tokens if count else 0
    prompts = prompts_of.prompts(lm, knobs.texts, source.contexts, *sizes)

    # Each latent's own direction, the baselines beside it, and the tokens that tell whether it had an effect.
    table = source.latents.table("statistics", ["dead"])
    assert table is not None
    living = np.flatnonzero(~table["dead"].to_numpy())
    steered = {
        j: conditions(sae, j, largest, living, difference(source.activations, source.latents, j), generator(seed, j))
        for j, largest in source.chosen.items()
    }
    wanted = {j: _wanted(source.latents, j, knobs) for j in source.chosen}

    found = _doses(place, prompts, steered, wanted, knobs, work)
    written = _written(place, prompts, source.chosen, steered, knobs, work)
    _write(folder, steered, found, written, knobs.strengths)

    results = [
        {
            "latent": j,
            "largest": largest,
            **_judged(steered[j], found[j], knobs, np.random.default_rng([seed, j])),
            **{name: [lm.tokenizer.decode([t]) for t in tokens.tolist()] for name, tokens in _named(wanted[j])},
            "written": written[j],
        }
        for j, largest in source.chosen.items()
    ]

    # meta.json comes last: with it the folder is complete.
    names = sorted(path.name for path in folder.iterdir() if path.name != "meta.json")
    facts = {"layer": place.layer, "hook": place.hook, "seed": seed, "steer_eval": knobs.model_dump()}
    files.write_json(folder / "meta.json", {**facts, "latents": list(source.chosen), "files": names})
    return {
        "layer": place.layer,
        "prompts": len(prompts),
        "strengths": knobs.strengths,
        "kl": knobs.kl,
        "beating_all": sum(one["beats_all"] for one in results) / len(results) if results else None,
        "latents": results,
    }


def _wanted(latents: Latents, latent: int, knobs: SteerEval) -> Wanted:
    promoted = prompts_of.promoted_tokens(latents, latent, knobs.promoted)
    return Wanted(promoted, prompts_of.next_tokens(latents, latent, knobs.contexts))


def _named(wanted: Wanted) -> list[tuple[str, torch.Tensor]]:
    return [("promoted_tokens", wanted.promoted), ("following_tokens", wanted.follows)]


def _doses(
    place: Place,
    prompts: Texts,
    steered: dict[int, list[Condition]],
    wanted: dict[int, Wanted],
    knobs: SteerEval,
    work: Path | None,
) -> dict[int, list[Dose]]:
    """Latent -> the doses of its conditions, in their order."""
    everything = [(condition, wanted[j]) for j, some in steered.items() for condition in some]
    passes = len(everything) * sum(strength != 0 for strength in knobs.strengths)
    passes *= -(-len(prompts) // knobs.batch_size)
    with tqdm(total=passes, desc=f"steer {place.layer}", unit=" passes", disable=None) as bar:
        found = iter(doses(place, prompts, everything, knobs.strengths, knobs.batch_size, bar.update, work))
    return {j: [next(found) for _ in some] for j, some in steered.items()}


def _written(
    place: Place,
    prompts: Texts,
    chosen: dict[int, float],
    steered: dict[int, list[Condition]],
    knobs: SteerEval,
    work: Path | None,
) -> dict[int, list[dict[str, Any]]]:
    """Latent -> what was written: first without steering, then by condition, strength and prompt. What is written of a
    latent is kept in ``work``."""
    count, lm, size = len(knobs.texts) + knobs.generate.prompts, place.lm, knobs.generate.tokens
    starts = prompts.lists()[:count]
    if not starts:
        return {j: [] for j in chosen}

    def kept(name: str) -> Path | None:
        return work / "written" / f"{name}.json" if work else None

    plain = resume.once_json(kept("plain"), lambda: generate(place, starts, [(None, 0.0)], size))

    def of(latent: int) -> list[dict[str, Any]]:
        strengths = [strength for strength in knobs.generate.strengths if strength]
        runs = [(condition, strength) for condition in steered[latent] for strength in strengths]
        new = plain + (generate(place, starts, runs, size) if runs else [])

        which = [("none", 0.0), *((condition.name, strength) for condition, strength in runs)]
        named = [(name, strength, prompt) for name, strength in which for prompt in starts]
        measured = read_back(place, [prompt for _, _, prompt in named], new, latent, chosen[latent])
        return [
            {
                "condition": name,
                "strength": strength,
                "prompt": lm.tokenizer.decode(prompt[1:]),
                "text": lm.tokenizer.decode(text),
                **numbers,
            }
            for (name, strength, prompt), text, numbers in zip(named, new, measured, strict=True)
        ]

    bar = tqdm(chosen, desc=f"write {place.layer}", unit=" latents", disable=None)
    return {j: resume.once_json(kept(str(j)), partial(of, j)) for j in bar}


def _write(
    folder: Path,
    steered: dict[int, list[Condition]],
    found: dict[int, list[Dose]],
    written: dict[int, list[dict[str, Any]]],
    strengths: list[float],
) -> None:
    """`doses.parquet`, a row a latent, condition, strength and prompt, and `written.parquet`."""
    rows: list[dict[str, Any]] = []
    for j, some in found.items():
        for condition, dose in zip(steered[j], some, strict=True):
            for number, text in np.ndindex(dose.kl.shape):
                head = {"latent": j, "condition": condition.name, "strength": strengths[number], "prompt": text}
                rows.append(head | {name: getattr(dose, name)[number, text] for name in Dose._fields})
    parquet.write(folder / "doses.parquet", {name: [row[name] for row in rows] for name in DOSES.names}, DOSES)
    rows = [{"latent": j, **row} for j, some in written.items() for row in some]
    parquet.write(folder / "written.parquet", {name: [row[name] for row in rows] for name in WRITTEN.names}, WRITTEN)


def _judged(
    steered: list[Condition], found: list[Dose], knobs: SteerEval, random: np.random.Generator
) -> dict[str, Any]:
    """Of a latent: its dose-response, its best effect within the bound on cost, and that of each baseline."""
    draws = drawn(found[0].kl.shape[1], knobs.bootstraps, random)
    judged: dict[str, Any] = {"monotone": monotone(knobs.strengths, found[0].promoted)}
    for name in ("promoted", "follows"):
        pairs = {one.name: (getattr(dose, name), dose.kl) for one, dose in zip(steered, found, strict=True)}
        own = pairs[LATENT]
        if np.isnan(own[0]).any():
            judged[name] = None
            continue
        others = [one for one in pairs if one != LATENT]
        judged[name] = {
            "best": {one: _best(*pair, knobs) for one, pair in pairs.items()},
            "against": {one: compared(knobs.strengths, own, pairs[one], knobs.kl, draws) for one in others},
        }
    judged["beats_all"] = all(line["beats"] for line in judged["promoted"]["against"].values())
    judged["doses"] = {
        condition.name: [
            {"strength": strength} | {name: _mean(getattr(dose, name)[number]) for name in Dose._fields}
            for number, strength in enumerate(knobs.strengths)
        ]
        for condition, dose in zip(steered, found, strict=True)
    }
    return judged


def _mean(values: np.ndarray) -> float | None:
    return None if np.isnan(values).any() else float(values.mean())


def _best(effect: np.ndarray, cost: np.ndarray, knobs: SteerEval) -> dict[str, float]:
    found = best(knobs.strengths, effect.mean(1, keepdims=True), cost.mean(1, keepdims=True), knobs.kl)
    return {name: float(value[0]) for name, value in found._asdict().items()}
