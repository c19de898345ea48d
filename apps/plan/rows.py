"""How many rows there will be: what every other number of a plan follows from."""

from dataclasses import dataclass
from pathlib import Path

from stages.select.whole import Params
from strata.corpus import read
from strata.rows.shards import open_contexts
from strata.run.door import BadInput

FILLED = 0.85  # share of a context's positions that are rows where documents begin one of their own (reports/log.md)


@dataclass(frozen=True)
class Rows:
    """``total`` activation rows of which training sees ``train``, out of ``contexts`` of ``context`` positions.
    ``note``: what is not known of them."""

    total: int
    train: int
    validation: int
    test: int
    contexts: int
    context: int
    note: str | None


def rows(params: Params, facts: dict[str, float], data: Path) -> Rows:
    """Of a language model a row is a token; of sentences and vectors a document. What fetch and extract have left in
    ``data`` says how many documents there are, and how full contexts are."""
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
    return Rows(total, total - validation - test, validation, test, contexts, context, note)


def _filled(params: Params, folder: Path) -> tuple[float, str | None]:
    if params.extract.pack:
        return 1 - 1 / params.extract.context, None
    if (folder / "meta.json").is_file():
        meta = open_contexts(folder).meta
        if meta["context"] == params.extract.context:
            return meta["rows"] / (meta["contexts"]["test"][1] * meta["context"]), None
    return FILLED, f"contexts are taken to be {FILLED:.0%} full, since their text has not been tokenised yet"


def _documents(params: Params, facts: dict[str, float], folder: Path) -> tuple[int, str | None]:
    if "documents" in facts:
        return int(facts["documents"]), None
    if (folder / "meta.json").is_file():
        return read.corpus_meta(folder)["documents"], None
    if params.fetch.corpus.documents is not None:
        return params.fetch.corpus.documents, None
    return params.extract.tokens, "how many documents there are is not known: extract.tokens, or say documents=…"
