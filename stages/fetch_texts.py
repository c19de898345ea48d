"""Stage fetch_texts: bring in the other text that interpret looks at, if there is one."""

from pathlib import Path
from typing import Any

from stages import fetch_corpus
from strata.corpus.knobs import over
from strata.corpus.place import whole_folder
from strata.run import params
from strata.run.files import write_json


def main(target: str) -> None:
    """TARGET: the folder that gets the documents of interpret.texts, whose keys replace those of fetch.corpus.

    Example: dvc repro fetch_texts
    """
    fetch, interpret = params.load("fetch", dict[str, Any]), params.load("interpret", dict[str, Any])
    texts = params.check(interpret.get("texts"), dict[str, Any] | None, "params.yaml: interpret.texts")

    with whole_folder(Path(target)) as folder:
        if texts is None or not interpret.get("run"):
            write_json(folder / "meta.json", {"skipped": True})
            return
        changed = {**fetch, "corpus": over(fetch["corpus"], texts)}
        fetch_corpus.bring(changed, folder, "params.yaml: interpret.texts over fetch.corpus")
