"""Stage fetch_corpus: bring the text in as documents with labels and splits."""

import sys
from pathlib import Path
from typing import Any

from strata import auto
from strata.corpus import corpus
from strata.corpus.place import whole_folder
from strata.rows.size import DOCUMENTS
from strata.run import params


def main(target: str) -> None:
    """TARGET: the folder that gets the documents.

    Example: dvc repro fetch_corpus
    """
    with whole_folder(Path(target)) as folder:
        bring(params.load("fetch", dict[str, Any]), folder)


def bring(section: dict[str, Any], folder: Path, where: str = "params.yaml: fetch.corpus") -> None:
    """Write the corpus of the section ``fetch`` into ``folder``. ``where``: how an error message names its params."""
    knobs, seed = params.check(section.get("corpus"), corpus.Corpus, where), params.load("seed", int)
    model_kind = params.check(section.get("lm"), dict[str, Any], "params.yaml: fetch.lm").get("kind", "")

    if model_kind in DOCUMENTS and auto.AUTO in (knobs.min_chars, knobs.near_duplicates):
        sys.stderr.write("fetch: each document is a row: none is dropped for being short or like another (auto)\n")
    corpus.build(knobs, seed, folder, model_kind)
