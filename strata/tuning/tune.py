"""Try knobs of train in short trainings, choose each by the results of those before, and keep the best."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from strata.device.machine import CPU
from strata.rows.shards import Activations
from strata.run import resume
from strata.run.door import BadInput
from strata.run.params import check
from strata.run.progress import each
from strata.training.knobs import Train
from strata.tuning.knobs import Tune, check_taken
from strata.tuning.search import Search
from strata.tuning.trial import attempt, sliced
from strata.verdict.targets import CHECKPOINT, Targets

Attempt = Callable[[dict[str, Any]], dict[str, Any]]  # knobs -> score, its parts, curve, reason


def search(
    tune: Tune,
    seed: int,
    train: dict[str, Any],
    attempt: Attempt,
    watch: Callable[[int, dict[str, float]], None] = lambda step, values: None,
    work: Path | None = None,
) -> tuple[list[dict[str, Any]], Search]:
    """Make ``tune.calls`` trials; the first has the knobs of ``train`` itself, if the space holds them.

    ``attempt``: makes one trial from its knobs. ``watch``: called after each trial with its number and its scores.
    ``work``: a folder where each trial is kept when it is done. Trials that are there already are told to the search,
    but not made again. A point that was tried before is not trained again either, because the result would be the same.

    Returns the trials, and the search as it ended.
    """
    state = Search(tune, seed, {name: train[name] for name in tune.space})
    trials: list[dict[str, Any]] = []
    for number in each(range(tune.calls), "try knobs", "trials"):
        knobs = state.ask()
        file = work / f"{number:04d}.json" if work else None
        trial = resume.kept_json(file) if file else None
        if file and trial is not None and trial["knobs"] != knobs:
            resume.drop(file, "is of other knobs than the search asks for")
            trial = None

        if trial is None:
            same = next((trial for trial in trials if trial["knobs"] == knobs), None)
            result = {name: same[name] for name in same if name not in ("trial", "kind")} if same else attempt(knobs)
            trial = {"trial": number, "kind": _kind(state, number, tune), "knobs": knobs, **result}
            if file:
                resume.keep_json(file, trial)

        state.tell(trial["score"])
        trials.append(trial)

        numbers = {name: trial[name] for name in ("score", "fvu", "l0", "dead") if trial[name] is not None}
        if (best := best_of(trials)) is not None:
            watch(number, {**numbers, "best": best["score"]})
    return trials, state


def _kind(state: Search, number: int, tune: Tune) -> str:
    """Say where a trial's knobs come from: params.yaml, chance, or the model of the trials before it."""
    if number == 0 and state.first is not None:
        return "params"
    return "random" if state.model is None or number < tune.starts + (state.first is not None) else "model"


def best_of(trials: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Find the trial with the lowest score, the earliest of equal ones; None if all failed."""
    done = [trial for trial in trials if trial["score"] is not None]
    return min(done, key=lambda trial: trial["score"], default=None)


def tune(
    activations: Activations,
    knobs: Tune,
    train: dict[str, Any],
    targets: Targets,
    seed: int,
    watch: Callable[[int, dict[str, float]], None] = lambda step, values: None,
    work: Path | None = None,
    device: torch.device = CPU,
) -> tuple[dict[str, Any], Search]:
    """Search the knobs; return the content of `trials.json`, and the search as it ended, for its pictures.

    ``train``: the section of params.yaml. ``watch`` and ``work``: see :func:`search`. Raises BadInput if
    train.from_tune names a knob that is not searched, if there are no validation rows, or if all trials failed.
    """
    check_taken(check(train, Train, "params.yaml: train").from_tune, knobs)
    first, end = activations.split("validation")
    if first == end:
        raise BadInput("there are no validation rows to judge trials by; raise fetch.corpus.validation")

    rows = sliced(activations, knobs.rows)
    trials, state = search(
        knobs, seed, train, lambda values: attempt(rows, train, values, knobs, targets, seed, device), watch, work
    )
    best = best_of(trials)
    if best is None:
        raise BadInput(f"all {len(trials)} trials of tune failed; the first: {trials[0]['reason']}")

    rows_seen = rows.split("train")[1] - rows.split("train")[0]
    return {
        "layer": activations.layer,
        "sampler": knobs.sampler,
        "seed": seed,
        "calls": knobs.calls,
        "starts": knobs.starts,
        "rows": {"train": rows_seen, "validation": end - first},
        "epochs": knobs.epochs,
        "targets": {name: targets.bounds[name].model_dump() for name in CHECKPOINT if name in targets.bounds},
        "space": {name: _plain(knobs.space[name]) for name in knobs.space},
        "from_tune": train["from_tune"],
        "best": best["trial"],
        "trials": trials,
    }, state


def _plain(spread: Any) -> Any:
    """Turn a range or a list of choices into what JSON can hold."""
    return spread if isinstance(spread, list) else spread.model_dump()
