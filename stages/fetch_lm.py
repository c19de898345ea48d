"""Stage fetch_lm: bring the language model in, once and pinned."""

from pathlib import Path
from typing import Any

from strata.corpus.place import whole_folder
from strata.run import params


def main(target: str) -> None:
    """TARGET: the folder that gets the language model, or a manifest of it.

    Example: dvc repro fetch_lm
    """
    from strata.weights import fetch as weights  # here, because it imports transformers, which takes seconds

    section = params.load("fetch", dict[str, Any])
    with whole_folder(Path(target)) as folder:
        knobs = params.check(section.get("lm"), weights.LM, "params.yaml: fetch.lm")
        weights.fetch(knobs, folder)
