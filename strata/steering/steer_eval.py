"""Steer with some latents of a layer, and compare each with baselines that anyone might have tried instead."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from strata.interpretation.read import Latents
from strata.lm.model import LanguageModel
from strata.measure.matched import matched
from strata.measure.partners import firing, partners
from strata.rows.batches import blocks
from strata.rows.shards import Activations, Contexts
from strata.run import files, resume
from strata.run.progress import Progress, each
from strata.sae.sae import SAE
from strata.seeds import generator
from strata.steering import texts as prompts_of
from strata.steering import twins
from strata.steering.conditions import LATENT, Condition, Place, conditions, difference
from strata.steering.doses import Response, TargetTokens, responses
from strata.steering.knobs import SteerEval
from strata.steering.summary import best, compared, drawn, monotone
from strata.steering.texts import Texts
from strata.steering.write import generate, read_back

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
    """What a layer is steered with: its rows, the texts they come from, its latents, the model.

    ``chosen``: maps each latent that is evaluated to its largest code. ``twins``: SAEs of equal budget with a part that
    stayed random, by name.
    """

    activations: Activations
    contexts: Contexts
    latents: Latents
    chosen: dict[int, float]
    lm: LanguageModel
    twins: Mapping[str, SAE] = field(default_factory=dict)


def applicable(latents: Latents) -> bool:
    """Whether interpret could tell which tokens the latents promote. Without these there is no effect to measure."""
    table = latents.table("logits", ["latent"])
    return table is not None and table.num_rows > 0


def steer_eval(
    sae: SAE, source: Source, knobs: SteerEval, seed: int, folder: Path, work: Path | None = None
) -> dict[str, Any]:
    """Steer with each latent of ``source.chosen``. Write `data/steered/<L>/` into ``folder``, and return the
    report's numbers.

    ``work``: a folder where unfinished work is kept, by latent.
    """
    meta, lm = source.latents.meta, source.lm
    place = Place(lm, sae, meta["layer"], meta["hook"])
    prompts_to_continue = len(knobs.texts) + knobs.generate.prompts
    prompts = prompts_of.prompts(
        lm,
        knobs.texts,
        source.contexts,
        knobs.prompts,
        knobs.tokens,
        knobs.scored,
        knobs.generate.tokens if prompts_to_continue else 0,
    )

    # Each latent's own direction, the baselines beside it, and the tokens that tell whether it had an effect.
    table = source.latents.table("statistics", ["density"])
    assert table is not None
    density = table["density"].to_numpy()
    steered = {}
    for j, largest in source.chosen.items():
        other = matched(density, [j], np.random.default_rng([seed, j]))  # a living latent that fires as often
        away = difference(source.activations, source.latents, j)
        steered[j] = conditions(sae, j, largest, other[other >= 0], away, generator(seed, j))
    target_tokens = {j: _target_tokens(source.latents, j, knobs) for j in source.chosen}

    # Run the model: its predictions at each strength, and the texts that it writes.
    responses_of = _responses(place, prompts, steered, target_tokens, knobs, work)
    beside_twins = _twins(place, source, prompts, density, responses_of, knobs, seed, work)
    written = _written(place, prompts, source.chosen, steered, knobs, work)
    _write(folder, steered, responses_of, written, knobs.strengths)

    results = [
        {
            "latent": j,
            "largest": largest,
            **_judged(steered[j], responses_of[j], knobs, np.random.default_rng([seed, j])),
            **{name: [lm.tokenizer.decode([t]) for t in tokens.tolist()] for name, tokens in _named(target_tokens[j])},
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
        "beating_all": sum(result["beats_all"] for result in results) / len(results) if results else None,
        "twins": beside_twins,
        "latents": results,
    }


def _target_tokens(latents: Latents, latent: int, knobs: SteerEval) -> TargetTokens:
    """Collect the tokens that tell whether steering with ``latent`` had an effect."""
    promoted = prompts_of.promoted_tokens(latents, latent, knobs.promoted)
    return TargetTokens(promoted, prompts_of.next_tokens(latents, latent, knobs.contexts))


def _named(target_tokens: TargetTokens) -> list[tuple[str, torch.Tensor]]:
    """Pair each list of tokens with its key in the report."""
    return [("promoted_tokens", target_tokens.promoted), ("following_tokens", target_tokens.follows)]


def _responses(
    place: Place,
    prompts: Texts,
    steered: dict[int, list[Condition]],
    target_tokens: dict[int, TargetTokens],
    knobs: SteerEval,
    work: Path | None,
) -> dict[int, list[Response]]:
    """Measure the responses to all conditions of each latent: latent -> its responses, in the order of the conditions.

    All conditions of all latents run together, so that they share the blocks of the model below the layer.
    """
    pairs = [(condition, target_tokens[j]) for j, of_latent in steered.items() for condition in of_latent]
    batches = -(-len(prompts) // knobs.batch_size)
    passes = len(pairs) * sum(strength != 0 for strength in knobs.strengths) * batches
    with Progress("steer", "passes", passes) as progress:
        in_order = iter(responses(place, prompts, pairs, knobs.strengths, knobs.batch_size, progress.update, work))
    return {j: [next(in_order) for _ in of_latent] for j, of_latent in steered.items()}


def _twins(
    place: Place,
    source: Source,
    prompts: Texts,
    density: np.ndarray,
    responses_of: dict[int, list[Response]],
    knobs: SteerEval,
    seed: int,
    work: Path | None,
) -> dict[str, Any]:
    """Steer with as many latents of each twin, and compare: twin -> what `twins.beside` says.

    ``density``: (latent,) of the SAE. ``responses_of``: of the SAE's latents, that of their own direction first.
    """
    own = {j: of_latent[0] for j, of_latent in responses_of.items()}
    rows, top = source.activations.rows, min(knobs.promoted, source.latents.meta["interpret"]["logits"])
    compared_with = {}
    for name, twin in each(source.twins.items(), "steer", "twins"):
        # On all rows, as interpret measured the SAE's: the largest code is what counts as strength 1.
        fires = firing(twin, blocks(source.activations, 0, rows, twin.decoder.device))
        partner_of = partners(density, list(own), fires, seed)
        kept = work / "twins" / name if work else None
        there = replace(place, sae=twin)
        found = twins.steered(there, fires, list(partner_of.values()), top, prompts, knobs, kept)

        random = np.random.default_rng([seed, place.layer])
        draws = drawn(len(prompts), knobs.bootstraps, random)
        compared_with[name] = twins.beside(own, partner_of, found, knobs, draws, random)
    return compared_with


def _written(
    place: Place,
    prompts: Texts,
    chosen: dict[int, float],
    steered: dict[int, list[Condition]],
    knobs: SteerEval,
    work: Path | None,
) -> dict[int, list[dict[str, Any]]]:
    """Map each latent to the texts that the model writes: first without steering, then by condition, strength, prompt.

    Each text comes with what :func:`read_back` measures. The texts of a latent are kept in ``work`` when they are done.
    """
    count, lm, length = len(knobs.texts) + knobs.generate.prompts, place.lm, knobs.generate.tokens
    starts = prompts.lists()[:count]
    if not starts:
        return {j: [] for j in chosen}

    def kept(name: str) -> Path | None:
        return work / "written" / f"{name}.json" if work else None

    plain = resume.once_json(kept("plain"), lambda: generate(place, starts, [(None, 0.0)], length))

    def texts_of(latent: int) -> list[dict[str, Any]]:
        strengths = [strength for strength in knobs.generate.strengths if strength]
        runs = [(condition, strength) for condition in steered[latent] for strength in strengths]
        continuations = plain + (generate(place, starts, runs, length) if runs else [])

        # The same order as ``continuations``: all prompts without steering, then all prompts of each run.
        settings = [("none", 0.0), *((condition.name, strength) for condition, strength in runs)]
        origins = [(name, strength, prompt) for name, strength in settings for prompt in starts]
        measured = read_back(place, [prompt for _, _, prompt in origins], continuations, latent, chosen[latent])
        return [
            {
                "condition": name,
                "strength": strength,
                "prompt": lm.tokenizer.decode(prompt[1:]),
                "text": lm.tokenizer.decode(tokens),
                **numbers,
            }
            for (name, strength, prompt), tokens, numbers in zip(origins, continuations, measured, strict=True)
        ]

    shown = each(chosen, "write texts", "latents")
    return {j: resume.once_json(kept(str(j)), partial(texts_of, j)) for j in shown}


def _write(
    folder: Path,
    steered: dict[int, list[Condition]],
    responses_of: dict[int, list[Response]],
    written: dict[int, list[dict[str, Any]]],
    strengths: list[float],
) -> None:
    """Write `doses.parquet`, a row for each latent, condition, strength and prompt, and `written.parquet`."""
    rows: list[dict[str, Any]] = []
    for j, of_latent in responses_of.items():
        for condition, response in zip(steered[j], of_latent, strict=True):
            for number, prompt in np.ndindex(response.kl.shape):
                key = {"latent": j, "condition": condition.name, "strength": strengths[number], "prompt": prompt}
                rows.append(key | {name: getattr(response, name)[number, prompt] for name in Response._fields})
    files.write_table(folder / "doses.parquet", {name: [row[name] for row in rows] for name in DOSES.names}, DOSES)

    rows = [{"latent": j, **text} for j, texts in written.items() for text in texts]
    files.write_table(
        folder / "written.parquet", {name: [row[name] for row in rows] for name in WRITTEN.names}, WRITTEN
    )


def _judged(
    steered: list[Condition], measured: list[Response], knobs: SteerEval, random: np.random.Generator
) -> dict[str, Any]:
    """Judge one latent: its dose-response, its best effect within the bound on cost, and that of each baseline.

    ``steered``: its own direction first, then the baselines. ``measured``: the responses of each of these. An effect is
    None where the latent has no tokens of that kind.
    """
    draws = drawn(measured[0].kl.shape[1], knobs.bootstraps, random)
    judged: dict[str, Any] = {"monotone": monotone(knobs.strengths, measured[0].promoted)}

    for effect in ("promoted", "follows"):
        # Condition -> effect and cost, (strength, prompt) each.
        curves = {
            condition.name: (getattr(response, effect), response.kl)
            for condition, response in zip(steered, measured, strict=True)
        }
        own = curves[LATENT]
        if np.isnan(own[0]).any():
            judged[effect] = None
            continue
        baselines = [name for name in curves if name != LATENT]
        judged[effect] = {
            "best": {name: _best(values, cost, knobs) for name, (values, cost) in curves.items()},
            "against": {name: compared(knobs.strengths, own, curves[name], knobs.kl, draws) for name in baselines},
        }

    judged["beats_all"] = all(comparison["beats"] for comparison in judged["promoted"]["against"].values())
    judged["doses"] = {
        condition.name: [
            {"strength": strength} | {name: _mean(getattr(response, name)[number]) for name in Response._fields}
            for number, strength in enumerate(knobs.strengths)
        ]
        for condition, response in zip(steered, measured, strict=True)
    }
    return judged


def _mean(values: np.ndarray) -> float | None:
    """Return the mean, or None where there is nothing to measure."""
    return None if np.isnan(values).any() else float(values.mean())


def _best(effect: np.ndarray, cost: np.ndarray, knobs: SteerEval) -> dict[str, float]:
    """Find the best mean effect over prompts within the bound on cost. ``effect``, ``cost``: (strength, prompt)."""
    optimum = best(knobs.strengths, effect.mean(1, keepdims=True), cost.mean(1, keepdims=True), knobs.kl)
    return {name: float(value[0]) for name, value in optimum._asdict().items()}
