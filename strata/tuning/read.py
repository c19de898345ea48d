"""Read what tune wrote: `best.yaml`, the knobs for train, and `trials.json`, how they were found."""

from pathlib import Path
from typing import Any

from strata.run.door import BadInput
from strata.run.files import read_json
from strata.run.params import read_yaml

Trials = dict[str, Any]


def taken(best: Path, names: list[str]) -> dict[str, Any]:
    """Read the values that ``best``, the path of `best.yaml`, has for the knobs ``names``; none if tune was skipped.

    Raises BadInput for a name that tune did not search.
    """
    content = read_yaml(best)
    if content.get("skipped"):
        return {}

    if strange := [name for name in names if name not in content["knobs"]]:
        raise BadInput(
            f"params.yaml: train.from_tune names {strange[0]!r}, which tune.space does not have; "
            f"{best} has {', '.join(content['knobs'])}"
        )
    return {name: content["knobs"][name] for name in names}


def read_trials(folder: Path) -> Trials | None:
    """Read `trials.json`; None if tune was skipped."""
    trials = read_json(folder / "trials.json")
    return None if trials.get("skipped") else trials


def numbers(found: Trials) -> dict[str, Any]:
    """Pick the numbers for the summary: the best trial, and the score with the knobs of params.yaml.

    ``found``: the content of `trials.json`.
    """
    best = found["trials"][found["best"]]
    first = found["trials"][0]
    return {
        **{name: best[name] for name in ("score", "fvu", "fvu_inlier", "l0", "dead")},
        "params_score": first["score"] if first["kind"] == "params" else None,
        "best_trial": found["best"],
        "trials": len(found["trials"]),
        "failed": sum(trial["score"] is None for trial in found["trials"]),
        "best": best["knobs"],
    }


def curve(found: Trials) -> list[dict[str, float]]:
    """Make a row for each trial that did not fail: its number as ``step``, its score and parts, the best score so far.

    ``found``: the content of `trials.json`.
    """
    rows, best = [], None
    for trial in found["trials"]:
        if trial["score"] is not None:
            best = trial["score"] if best is None else min(best, trial["score"])
            parts = {name: trial[name] for name in ("score", "fvu", "l0", "dead")}
            rows.append({"step": trial["trial"], **parts, "best": best})
    return rows
