"""Whether the search of stage tune beats chance: the best held-out constrained score of equally many trials.

Each sampler searches the same space on the same slice, once a seed; trainings themselves have one seed, so that a point
has one score, whoever asks for it. All begin with the knobs of params.yaml, as the stage does. Nothing is timed.
"""

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.pieces import say
from strata.device.machine import Machine, keep_memory, start
from strata.rows.shards import Activations, open_activations
from strata.run import params
from strata.run.door import run
from strata.tuning.knobs import Tune
from strata.tuning.trial import attempt, sliced
from strata.tuning.tune import best_of, search
from strata.verdict.targets import Targets

SPACE = {
    "lr": {"min": 1.0e-4, "max": 1.0e-1, "log": True},
    "k": {"min": 16, "max": 256, "log": True},
    "auxk": {"min": 1.0e-3, "max": 1.0, "log": True},
}


def best_scores(
    activations: Activations,
    train: dict[str, Any],
    plan: Tune,
    targets: Targets,
    seeds: list[int],
    known: dict[str, Any],
) -> list[list[float | None]]:
    """For each seed, the best score after each trial. ``known``: what points that were tried before came to."""

    def score(point: dict[str, Any]) -> dict[str, Any]:
        key = json.dumps(point)
        if key not in known:
            known[key] = attempt(activations, train, point, plan, targets, 0)
        return known[key]

    found = []
    for seed in seeds:
        trials, _ = search(plan, seed, train, score)
        bests = [best_of(trials[: number + 1]) for number in range(len(trials))]
        found.append([best and best["score"] for best in bests])
        say(json.dumps({"sampler": plan.sampler, "seed": seed, "best": found[-1][-1]}))
    return found


def main(*words: str) -> None:
    """Print one JSON object: each sampler's best scores by seed, their means, and what beats dummy by how much."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tuning", description=main.__doc__)
    parser.add_argument("--samplers", nargs="+", default=["gp", "forest", "dummy"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--calls", type=int, default=14)
    parser.add_argument("--starts", type=int, default=6)
    parser.add_argument("--rows", type=int, default=32768)
    parser.add_argument("--validation", type=int, default=4096, help="rows that a trial is judged on")
    parser.add_argument("--latents", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--activations", type=Path, default=Path("data/activations/9"))
    given = parser.parse_args(words)
    start(Machine(device="cpu", threads=given.threads, save_every=60))
    keep_memory()  # as the stage does
    whole = sliced(open_activations(given.activations), given.rows)
    first, end = whole.split("validation")
    splits = {**whole.meta["splits"], "validation": [first, min(end, first + given.validation)]}
    slice_ = replace(whole, meta={**whole.meta, "splits": splits})
    train = {**params.load("train", dict), "latents": given.latents}
    targets = params.load("targets", Targets)
    base = {"run": True, "rows": None, "epochs": 1, "space": SPACE}
    known: dict[str, Any] = {}
    curves = {}
    for sampler in given.samplers:
        plan = params.check({**base, "sampler": sampler, "calls": given.calls, "starts": given.starts}, Tune, "tune")
        curves[sampler] = best_scores(slice_, train, plan, targets, given.seeds, known)
    last = {sampler: [curve[-1] for curve in found] for sampler, found in curves.items()}
    lines = {}
    for sampler, scores in last.items():
        line: dict[str, Any] = {"by_seed": scores, "mean": statistics.fmean(scores), "worst": max(scores)}
        line["mean_after"] = [
            statistics.fmean(column) for column in zip(*curves[sampler], strict=True) if None not in column
        ]
        if "dummy" in last and sampler != "dummy":
            line["below_dummy"] = statistics.fmean(last["dummy"]) - line["mean"]
            line["seeds_won"] = sum(ours < theirs for ours, theirs in zip(scores, last["dummy"], strict=True))
        lines[sampler] = line
    facts = {name: str(value) if isinstance(value, Path) else value for name, value in vars(given).items()}
    at_params = next(iter(known.values()))["score"]
    print(
        json.dumps(
            {**facts, "space": SPACE, "params_score": at_params, "trainings": len(known), "found": lines}, indent=2
        )
    )


if __name__ == "__main__":
    run(main, options=True)
