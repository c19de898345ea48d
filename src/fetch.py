"""Stage fetch: bring the language model or a text in, once and pinned."""

import sys
from pathlib import Path
from typing import Any

from stages import auto, params
from stages.door import one_of, run
from stages.fetch.knobs import over
from stages.fetch.place import whole_folder
from stages.files import write_json
from stages.finished import kept


def main(what: str, target: str) -> None:
    """WHAT: lm, corpus, or texts, the other corpus that interpret looks at; TARGET: the folder that gets it.

    Example: dvc repro fetch_lm
    """
    known = {"lm": lm, "corpus": corpus, "texts": texts}
    bring = known[one_of(what, list(known), "what to fetch")]
    with whole_folder(Path(target)) as folder:
        bring(params.load("fetch", dict[str, Any]), folder)


def lm(section: dict[str, Any], folder: Path) -> None:
    from stages.fetch import lm as room  # transformers takes seconds, which the text does without

    room.fetch(params.check(section.get("lm"), room.LM, "params.yaml: fetch.lm"), folder)


def corpus(section: dict[str, Any], folder: Path, where: str = "params.yaml: fetch.corpus") -> None:
    from stages.fetch import corpus as room

    knobs, seed = params.check(section.get("corpus"), room.Corpus, where), params.load("seed", int)
    kind = params.check(section.get("lm"), dict[str, Any], "params.yaml: fetch.lm").get("kind", "")
    if kind in auto.DOCUMENTS and auto.AUTO in (knobs.min_chars, knobs.near_duplicates):
        sys.stderr.write("fetch: each document is a row: none is dropped for being short or like another (auto)\n")
    room.build(knobs, seed, folder, kind)


def texts(section: dict[str, Any], folder: Path) -> None:
    """The keys of interpret.texts over those of fetch.corpus; nothing where nobody asks for it."""
    interpret = params.load("interpret", dict[str, Any])
    change = params.check(interpret.get("texts"), dict[str, Any] | None, "params.yaml: interpret.texts")
    if change is None or not interpret.get("run"):
        write_json(folder / "meta.json", {"skipped": True})
    else:
        whole = {**section, "corpus": over(section["corpus"], change)}
        corpus(whole, folder, "params.yaml: interpret.texts over fetch.corpus")


if __name__ == "__main__":
    run(kept(main))
