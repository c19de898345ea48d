"""Estimate how many rows there will be. Every other number of a plan follows from that."""

from dataclasses import dataclass
from pathlib import Path

from stages.select.whole import Params
from strata.corpus import read
from strata.rows.shards import open_contexts
from strata.run.door import BadInput

# The share of a context's positions that are rows, where each document begins a context of its own (reports/log.md).
FILLED = 0.85


@dataclass(frozen=True)
class Rows:
    """How many activation rows there are, by split, and the contexts that they come from.

    ``contexts``: their number. ``context``: positions of one. ``note``: which of the numbers are guessed, None if none.
    """

    total: int
    train: int
    validation: int
    test: int
    contexts: int
    context: int
    note: str | None


def rows(params: Params, facts: dict[str, float], data: Path) -> Rows:
    """Estimate the rows. A row is a token with a language model, and a document with sentences or vectors.

    ``facts``: numbers from the command line. ``data``: the folder data/. What fetch and extract have left there says
    how many documents there are and how full the contexts are.
    """
    extract, corpus = params.extract, params.fetch.corpus
    if params.fetch.lm.kind == read.LANGUAGE:
        total, context = extract.tokens, extract.context
        filled, note = _filled(params, data / "activations" / "tokens")
        contexts = -int(-total // (context * filled))
    else:
        if params.layers != [0]:
            raise BadInput(f"layers is {params.layers}, but with fetch.lm.kind {params.fetch.lm.kind} it must be [0]")
        documents, note = _documents(params, facts, data / "corpus")
        total = contexts = min(documents, extract.tokens)
        context = 1

    validation, test = round(total * corpus.validation), round(total * corpus.test)
    train = total - validation - test
    return Rows(total, train, validation, test, contexts, context, note)


def _filled(params: Params, folder: Path) -> tuple[float, str | None]:
    """Return the share of positions that are rows, and a note if it is a guess. ``folder``: the contexts of extract."""
    if params.extract.pack:
        return 1 - 1 / params.extract.context, None  # BOS is no row
    if (folder / "meta.json").is_file():
        meta = open_contexts(folder).meta
        if meta["context"] == params.extract.context:
            return meta["rows"] / (meta["contexts"]["test"][1] * meta["context"]), None
    return FILLED, f"contexts are taken to be {FILLED:.0%} full, since their text has not been tokenised yet"


def _documents(params: Params, facts: dict[str, float], folder: Path) -> tuple[int, str | None]:
    """Return the number of documents, and a note if it is a guess. ``folder``: the corpus of fetch."""
    if "documents" in facts:
        return int(facts["documents"]), None
    if (folder / "meta.json").is_file():
        return read.corpus_meta(folder)["documents"], None
    if params.fetch.corpus.documents is not None:
        return params.fetch.corpus.documents, None
    return params.extract.tokens, "how many documents there are is not known: extract.tokens, or say documents=…"
