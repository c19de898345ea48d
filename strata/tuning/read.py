"""Read what tune wrote: `best.yaml`, the knobs that train takes, and `trials.json`, how they were found."""

from pathlib import Path
from typing import Any

from strata.run.door import BadInput
from strata.run.files import read_json
from strata.run.params import read_yaml

Trials = dict[str, Any]


def taken(best: Path, names: list[str]) -> dict[str, Any]:
    """The values that ``best`` (`best.yaml`) has for the knobs ``names``; none if tune was skipped.

    Raises BadInput for a name that tune did not search.
    """
    found = read_yaml(best)
    if found.get("skipped"):
        return {}
    if strange := [name for name in names if name not in found["knobs"]]:
        raise BadInput(
            f"params.yaml: train.from_tune names {strange[0]!r}, which tune.space does not have; "
            f"{best} has {', '.join(found['knobs'])}"
        )
    return {name: found["knobs"][name] for name in names}


def read_trials(folder: Path) -> Trials | None:
    """What `trials.json` says; None if tune was skipped."""
    found = read_json(folder / "trials.json")
    return None if found.get("skipped") else found


def numbers(found: Trials) -> dict[str, Any]:
    """What the summary takes of it: the best trial, and beside it the one with the knobs of params.yaml."""
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
    """A row a trial that did not fail: its number as ``step``, its score and parts, and the best score by then."""
    rows, best = [], None
    for trial in found["trials"]:
        if trial["score"] is not None:
            best = trial["score"] if best is None else min(best, trial["score"])
            parts = {name: trial[name] for name in ("score", "fvu", "l0", "dead")}
            rows.append({"step": trial["trial"], **parts, "best": best})
    return rows
