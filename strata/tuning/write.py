"""Write `reports/tune/`: the best knobs for train, every trial for people and programs, pictures."""

import csv
import io
from pathlib import Path
from typing import Any

from strata.run.files import write_bytes, write_json, write_text
from strata.run.params import dump_yaml
from strata.tuning.pictures import convergence, dependence
from strata.tuning.read import numbers
from strata.tuning.search import Search

HEAD = """# Written by stage tune. For the knobs that train.from_tune of params.yaml names, train takes the values
# below in place of its own section's; by_layer wins over both. All other knobs are as params.yaml says.
"""
SKIPPED = """# tune.run is false in params.yaml: train goes by its own section alone.
skipped: true
"""
PARTS = ("fvu", "fvu_inlier", "l0", "dead", "reason")


def skip(folder: Path) -> None:
    """Write that nothing was searched, so that train goes by params.yaml alone."""
    write_json(folder / "trials.json", {"skipped": True})
    write_text(folder / "best.yaml", SKIPPED)


def write(folder: Path, found: dict[str, Any], search: Search) -> None:
    """Write all files of ``folder``, `best.yaml` last. ``found``: the content of `trials.json`."""
    pictures = {"convergence": convergence(found), "dependence": dependence(found, search)}
    for name, png in pictures.items():
        if png is not None:
            write_bytes(folder / f"{name}.png", png)

    write_text(folder / "trials.csv", table(found["trials"], list(found["space"])))
    write_json(folder / "trials.json", found)

    result = numbers(found)
    facts = {"knobs": result.pop("best"), **result}
    facts |= {name: found[name] for name in ("layer", "sampler", "seed", "calls", "starts", "rows", "epochs")}
    write_text(folder / "best.yaml", HEAD + dump_yaml(facts))


def table(trials: list[dict[str, Any]], names: list[str]) -> str:
    """Write a CSV line for each trial. A failed one has its reason, and empty fields where it has no value."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "kind", *names, "score", "best", *PARTS])
    best = None
    for trial in trials:
        if trial["score"] is not None:
            best = trial["score"] if best is None else min(best, trial["score"])
        knobs = [trial["knobs"][name] for name in names]
        writer.writerow([trial["trial"], trial["kind"], *knobs, trial["score"], best, *(trial[name] for name in PARTS)])
    return text.getvalue()
