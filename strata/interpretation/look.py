"""Go through a layer's codes once, a range of latents at a time, and write the tables that go by latent."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from strata.interpretation import examples as find
from strata.interpretation import export
from strata.interpretation.enrichment import Sets
from strata.interpretation.explanations import Explanation, Halves, by_labels, by_rules
from strata.interpretation.knobs import Interpret
from strata.interpretation.read import Codes, Columns
from strata.interpretation.statistics import (
    ByDocument,
    Table,
    by_document,
    ranks,
    statistics,
    token_statistics,
    word_statistics,
)
from strata.interpretation.text import Text
from strata.interpretation.vocabulary import Vocabulary
from strata.interpretation.word_rules import Bags
from strata.rows.shards import Activations
from strata.run import files, resume
from strata.run.progress import Progress

WORD = pa.string()
TABLES = {
    "documents": export.DOCUMENTS,
    "tokens": export.TOKENS,
    "examples": export.EXAMPLES,
    "rules": export.RULES,
}


@dataclass
class Looked:
    """What the pass leaves in memory, for the work that needs the whole layer.

    ``statistics``: columns (latents,). ``rows``, ``documents``: the strongest ones of each latent, a range after the
    other. ``rules``, ``labels``: explanations by token rules and by the labels of documents.
    """

    statistics: Table = field(default_factory=dict)
    rows: list[Sets] = field(default_factory=list)
    documents: list[Sets] = field(default_factory=list)
    rules: list[Explanation] = field(default_factory=list)
    labels: list[Explanation] = field(default_factory=list)


@dataclass(frozen=True)
class Look:
    """All that is needed to look at any range of latents of a layer.

    ``bins``: edges of the histogram of activations. ``background``: (vocabulary,) on how many rows each token stands.
    ``labels``: the label of each document, as if it were its one word; None where labels tell nothing.
    """

    activations: Activations
    text: Text
    bins: np.ndarray
    words: export.Words
    background: np.ndarray
    halves: Halves
    labels: Bags | None
    pool: find.Pool
    knobs: Interpret
    seed: int

    def examples(self, columns: Columns, order: np.ndarray) -> list[find.Found]:
        """Choose windows of every kind: the top ones first, the near ones last."""
        text, knobs, seed = self.text, self.knobs.examples, self.seed
        top = find.top(columns, order, text, knobs)
        return [
            top,
            *find.deciles(columns, order, text, knobs, seed),
            find.random(columns, text, top, knobs, seed),
            find.zeros(columns, text, knobs, seed),
            find.near(columns, text, top, self.pool, self.activations, knobs),
        ]

    def tokens(self, columns: Columns) -> Table:
        """Compute `tokens.parquet` for a range, without the text of the tokens."""
        if self.halves.bags is None:
            return token_statistics(columns, self.text, self.background, self.knobs.tokens)
        return word_statistics(columns, self.halves.bags, self.knobs.tokens)

    def pieces(self, tokens: np.ndarray) -> pa.Array:
        """Return the text of tokens; where rows are documents, the words with these numbers."""
        texts = self.words.pieces if self.halves.bags is None else pa.array(self.halves.bags.words, WORD)
        return texts.take(pa.array(tokens))


@dataclass(frozen=True)
class Part:
    """The results for a range of latents that take time. All tables of the range follow from them and the codes.

    ``windows``: the examples, as :meth:`Look.examples` orders them. ``rules``: rows of `rules.parquet`.
    ``explained``: explanations by rules and by labels.
    """

    statistics: Table
    tokens: Table
    windows: list[find.Found]
    rules: list[dict[str, Any]]
    explained: list[Explanation]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Write all of it as tensors, which are kept until the stage is done. `of` reads them."""
        arrays = {f"statistics.{name}": values for name, values in self.statistics.items()}
        arrays |= {f"tokens.{name}": values for name, values in self.tokens.items()}
        for number, window in enumerate(self.windows):
            fields = {name: value for name, value in vars(window).items() if isinstance(value, np.ndarray)}
            arrays |= {f"windows.{number}.{name}": value for name, value in fields.items()}

        # What is no array travels as the bytes of JSON.
        facts = {
            "kinds": [window.kind for window in self.windows],
            "rules": self.rules,
            "explained": [asdict(explanation) for explanation in self.explained],
        }
        arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8).copy()
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}

    @classmethod
    def of(cls, tensors: dict[str, torch.Tensor]) -> "Part":
        """Read what :meth:`tensors` wrote."""
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        facts = json.loads(arrays.pop("facts").tobytes())

        def under(prefix: str) -> Table:
            return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}

        windows = [find.Found(kind, **under(f"windows.{number}.")) for number, kind in enumerate(facts["kinds"])]
        explained = [Explanation(**explanation) for explanation in facts["explained"]]
        return cls(under("statistics."), under("tokens."), windows, facts["rules"], explained)


def words(
    vocabulary: Vocabulary, background: np.ndarray, titles: list[str | None], labels: list[str | None]
) -> export.Words:
    """Collect the text of every token, and the titles and labels of the documents.

    Only tokens that occur have a text; the others get an empty one. ``background``: (vocabulary,) on how many rows each
    token stands.
    """
    occurring = np.flatnonzero(background)
    token_texts = np.full(len(background), "", object)
    token_texts[occurring] = vocabulary.pieces(occurring.tolist())
    return export.Words(pa.array(token_texts, WORD), pa.array(titles, WORD), pa.array(labels, WORD))


def look(codes: Codes, with_: Look, vocabulary: Vocabulary, folder: Path, work: Path) -> Looked:
    """Write the tables that go by latent into ``folder``, and return what the work on the whole layer needs.

    The results that take time are kept in ``work``, a file for each range of latents. A run that finds such a file
    does not compute the range again.
    """
    looked, knobs = Looked(), with_.knobs
    arrays = export.Arrays(codes.latents, knobs.examples)
    statistics_of_ranges: list[Table] = []

    @cache
    def piece(number: int) -> str:
        """The text of one token, or one word."""
        return vocabulary.pieces([number])[0] if with_.halves.bags is None else with_.halves.bags.words[number]

    with ExitStack() as stack:
        tables = {
            name: stack.enter_context(files.writing_table(folder / f"{name}.parquet", schema))
            for name, schema in TABLES.items()
        }
        path = folder / "examples.jsonl.gz" if "jsonl" in knobs.exports else None
        json_lines = stack.enter_context(export.lines(path, with_.words.pieces))
        progress = stack.enter_context(Progress("look", "latents", codes.latents))

        for first, end in codes.ranges():
            columns = codes.columns(first, end)
            spread, order = by_document(columns, with_.text), find.by_strength(columns)
            part = _part(columns, spread, order, with_, piece, work / "ranges" / f"{first}.safetensors")

            # Write what goes by latent.
            examples = export.examples(columns, part.windows, with_.text, with_.words)
            tokens = {**part.tokens, "piece": with_.pieces(part.tokens["token"])}
            tables["documents"].write_table(files.table(_documents(columns, spread), export.DOCUMENTS), files.ROW_GROUP)
            tables["tokens"].write_table(files.table(tokens, export.TOKENS), files.ROW_GROUP)
            tables["examples"].write_table(examples, files.ROW_GROUP)
            tables["rules"].write_table(pa.Table.from_pylist(part.rules, export.RULES), files.ROW_GROUP)
            if json_lines is not None:
                json_lines.write(examples)
            for window in part.windows:
                arrays.add(columns, window)

            # Keep what the whole layer needs.
            statistics_of_ranges.append(part.statistics)
            looked.rules += [explanation for explanation in part.explained if explanation.source == "rule"]
            looked.labels += [explanation for explanation in part.explained if explanation.source == "label"]
            looked.rows.append(_strongest(columns, order, knobs.enrichment.rows))
            looked.documents.append(_strongest_documents(spread, len(columns), knobs.enrichment.documents))
            progress.update(end - first)

    if "npy" in knobs.exports:
        arrays.write(folder)
    looked.statistics = {
        name: np.concatenate([table[name] for table in statistics_of_ranges]) for name in statistics_of_ranges[0]
    }
    return looked


def _part(
    columns: Columns, spread: ByDocument, order: np.ndarray, with_: Look, piece: Callable[[int], str], path: Path
) -> Part:
    """Compute what takes time of a range of latents and keep it in ``path``; or read it, if it is kept there.

    ``order``: the entries of ``columns`` by latent and falling value. ``piece``: token -> its text.
    """
    kept = resume.kept_tensors(path)
    if kept is not None:
        return Part.of(kept)

    rules, explained = by_rules(columns, with_.halves, with_.knobs.items, piece)
    if with_.labels is not None:
        explained += by_labels(columns, with_.halves, with_.labels, with_.knobs.items)
    part = Part(
        statistics=statistics(columns, spread, with_.text, with_.bins),
        tokens=with_.tokens(columns),
        windows=with_.examples(columns, order),
        rules=rules,
        explained=explained,
    )
    resume.keep_tensors(path, part.tensors())
    return part


def _documents(columns: Columns, spread: ByDocument) -> dict[str, Any]:
    """Return the columns of `documents.parquet` for a range."""
    latent = spread.latent + columns.first
    return {"latent": latent, "document": spread.document, "mean": spread.mean, "max": spread.max}


def _strongest(columns: Columns, order: np.ndarray, most: int) -> Sets:
    """Return the ``most`` strongest rows of each latent; ``order``: the entries by latent and falling value."""
    latent = columns.latents()[order]
    order, latent = order[ranks(latent) < most], latent[ranks(latent) < most]
    return _sets(latent, columns.rows[order], len(columns))


def _strongest_documents(spread: ByDocument, latents: int, most: int) -> Sets:
    """Return the ``most`` documents of each latent with the highest mean activation."""
    order = np.lexsort((spread.document, -spread.mean, spread.latent))
    latent = spread.latent[order]
    order, latent = order[ranks(latent) < most], latent[ranks(latent) < most]
    return _sets(latent, spread.document[order], latents)


def _sets(latent: np.ndarray, items: np.ndarray, latents: int) -> Sets:
    """Group ``items`` by ``latent``, which ascends and runs from 0 to ``latents`` - 1."""
    return Sets(np.searchsorted(latent, np.arange(latents + 1)), items)


def joined(parts: list[Sets]) -> Sets:
    """Join the sets of consecutive ranges of latents."""
    counts = np.concatenate([np.diff(part.starts) for part in parts])
    return Sets(np.concatenate([[0], counts.cumsum()]), np.concatenate([part.items for part in parts]))
