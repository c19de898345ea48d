"""Stage fetch_lm: bring the language model in, once and pinned."""

from pathlib import Path
from typing import Any

from strata.corpus.place import whole_folder
from strata.run import params


def main(target: str) -> None:
    """TARGET: the folder that gets the language model, or a manifest of it.

    Example: dvc repro fetch_lm
    """
    from strata.device.machine import round_alike  # here, because these import torch and transformers for seconds
    from strata.weights import fetch as weights

    round_alike()  # this stage asks the model for a few tokens

    section = params.load("fetch", dict[str, Any])
    with whole_folder(Path(target)) as folder:
        knobs = params.check(section.get("lm"), weights.LM, "params.yaml: fetch.lm")
        weights.fetch(knobs, folder)
