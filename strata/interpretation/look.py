"""One pass over a layer's codes, a range of latents at a time: what goes by latent is computed and written there."""

import json
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from tqdm import tqdm

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
from strata.interpretation.vocabulary import Bags, Vocabulary
from strata.rows.shards import Activations
from strata.run import resume
from strata.tables import parquet


@dataclass
class Looked:
    """What the pass leaves in memory: some numbers a latent. ``rows`` and ``documents``: the strongest ones."""

    statistics: Table = field(default_factory=dict)
    rows: list[Sets] = field(default_factory=list)
    documents: list[Sets] = field(default_factory=list)
    rules: list[Explanation] = field(default_factory=list)
    labels: list[Explanation] = field(default_factory=list)


@dataclass(frozen=True)
class Look:
    """All that a range of latents is looked at with."""

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
        """Windows of every kind, the top ones first, the near ones last."""
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
        """`tokens.parquet` for a range, but for the tokens' text."""
        if self.halves.bags is None:
            return token_statistics(columns, self.text, self.background, self.knobs.tokens)
        return word_statistics(columns, self.halves.bags, self.knobs.tokens)

    def pieces(self, tokens: np.ndarray) -> pa.Array:
        """The text of tokens, or of words by their number."""
        texts = self.words.pieces if self.halves.bags is None else pa.array(self.halves.bags.words, WORD)
        return texts.take(pa.array(tokens))


@dataclass(frozen=True)
class Part:
    """What is computed of a range of latents and takes time: all tables of the range follow from it and the codes.

    ``windows``: the examples, as :meth:`Look.examples` orders them. ``rules``: rows of `rules.parquet`.
    """

    statistics: Table
    tokens: Table
    windows: list[find.Found]
    rules: list[dict[str, Any]]
    explained: list[Explanation]

    def tensors(self) -> dict[str, torch.Tensor]:
        """The same as tensors, to be kept until the stage is done."""
        arrays = {f"statistics.{name}": values for name, values in self.statistics.items()}
        arrays |= {f"tokens.{name}": values for name, values in self.tokens.items()}
        for number, window in enumerate(self.windows):
            fields = {name: value for name, value in vars(window).items() if isinstance(value, np.ndarray)}
            arrays |= {f"windows.{number}.{name}": value for name, value in fields.items()}
        facts = {
            "kinds": [window.kind for window in self.windows],
            "rules": self.rules,
            "explained": [asdict(explanation) for explanation in self.explained],
        }
        arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8).copy()
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}

    @classmethod
    def of(cls, tensors: dict[str, torch.Tensor]) -> "Part":
        """What :meth:`tensors` was made of."""
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
    """The text of every token that occurs (the others are empty), and what documents are called."""
    there = np.flatnonzero(background)
    found = np.full(len(background), "", object)
    found[there] = vocabulary.pieces(there.tolist())
    return export.Words(pa.array(found, WORD), pa.array(titles, WORD), pa.array(labels, WORD))


WORD = pa.string()
TABLES = {
    "documents": export.DOCUMENTS,
    "tokens": export.TOKENS,
    "examples": export.EXAMPLES,
    "rules": export.RULES,
}


def look(codes: Codes, with_: Look, vocabulary: Vocabulary, folder: Path, work: Path) -> Looked:
    """Write what goes by latent into ``folder`` and return what is still to be put together.

    What takes time is kept in ``work``, a range of latents at a time, and not computed again where it is there.
    """
    found, exports = Looked(), with_.knobs.exports
    arrays = export.Arrays(codes.latents, with_.knobs.examples)
    parts: list[Table] = []

    @cache
    def piece(number: int) -> str:
        return vocabulary.pieces([number])[0] if with_.halves.bags is None else with_.halves.bags.words[number]

    with ExitStack() as stack:
        tables = {
            name: stack.enter_context(parquet.writing(folder / f"{name}.parquet", schema))
            for name, schema in TABLES.items()
        }
        path = folder / "examples.jsonl.gz" if "jsonl" in exports else None
        file = stack.enter_context(export.lines(path, with_.words.pieces))
        bar = stack.enter_context(tqdm(total=codes.latents, desc="latents", unit="", disable=None))
        for first, end in codes.ranges():
            columns = codes.columns(first, end)
            spread, order = by_document(columns, with_.text), find.by_strength(columns)

            path = work / "ranges" / f"{first}.safetensors"
            kept = resume.kept_tensors(path)
            if kept is not None:
                part = Part.of(kept)
            else:
                items = with_.knobs.explain.items
                rules, explained = by_rules(columns, with_.halves, items, piece)
                if with_.labels is not None:
                    explained += by_labels(columns, with_.halves, with_.labels, items)
                part = Part(
                    statistics(columns, spread, with_.text, with_.bins),
                    with_.tokens(columns),
                    with_.examples(columns, order),
                    rules,
                    explained,
                )
                resume.keep_tensors(path, part.tensors())

            shown = export.examples(columns, part.windows, with_.text, with_.words)
            for window in part.windows:
                arrays.add(columns, window)
            named = {**part.tokens, "piece": with_.pieces(part.tokens["token"])}
            written = {
                "documents": parquet.table(_documents(columns, spread), export.DOCUMENTS),
                "tokens": parquet.table(named, export.TOKENS),
                "examples": shown,
                "rules": pa.Table.from_pylist(part.rules, export.RULES),
            }
            for name, table in written.items():
                tables[name].write_table(table, parquet.GROUP)
            if file is not None:
                file.write(shown)

            parts.append(part.statistics)
            found.rules += [explanation for explanation in part.explained if explanation.source == "rule"]
            found.labels += [explanation for explanation in part.explained if explanation.source == "label"]
            found.rows.append(_strongest(columns, order, with_.knobs.enrichment.rows))
            found.documents.append(_strongest_documents(spread, len(columns), with_.knobs.enrichment.documents))
            bar.update(end - first)
    if "npy" in exports:
        arrays.write(folder)
    found.statistics = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return found


def _documents(columns: Columns, spread: ByDocument) -> dict[str, Any]:
    latent = spread.latent + columns.first
    return {"latent": latent, "document": spread.document, "mean": spread.mean, "max": spread.max}


def _strongest(columns: Columns, order: np.ndarray, most: int) -> Sets:
    """The ``most`` strongest rows of each latent; ``order``: the entries by latent and falling value."""
    latent = columns.latents()[order]
    order, latent = order[ranks(latent) < most], latent[ranks(latent) < most]
    return _sets(latent, columns.rows[order], len(columns))


def _strongest_documents(spread: ByDocument, latents: int, most: int) -> Sets:
    """The ``most`` documents of each latent with the highest mean activation."""
    order = np.lexsort((spread.document, -spread.mean, spread.latent))
    latent = spread.latent[order]
    order, latent = order[ranks(latent) < most], latent[ranks(latent) < most]
    return _sets(latent, spread.document[order], latents)


def _sets(latent: np.ndarray, items: np.ndarray, latents: int) -> Sets:
    return Sets(np.searchsorted(latent, np.arange(latents + 1)), items)


def joined(parts: list[Sets]) -> Sets:
    """The sets of all ranges."""
    counts = np.concatenate([np.diff(part.starts) for part in parts])
    return Sets(np.concatenate([[0], counts.cumsum()]), np.concatenate([part.items for part in parts]))
