"""Write tables as Parquet, a range of latents at a time, and the examples also as JSON lines and as plain arrays."""

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from strata.interpretation.examples import KINDS, Examples, Found, values_in
from strata.interpretation.read import Columns
from strata.interpretation.text import Text
from strata.run import files
from strata.run.files import replacing, write_array

# Kind of example -> how the names of its two files begin, and what the second file holds.
GROWTH_SIGNALS = {"top": ("topk", "values"), "random": ("random", "values"), "near": ("zero", "similarities")}

INT, LONG, REAL, WORD, SHORT = pa.int32(), pa.int64(), pa.float64(), pa.string(), pa.float32()
CERTIFICATES = {  # columns that stability gives; all null where it did not run
    "seeds": INT, "again": SHORT, "again_chance": SHORT, "again_cofiring": SHORT, "again_cofiring_chance": SHORT,
}  # fmt: skip
STATISTICS = pa.schema(
    {
        "latent": INT, "active": LONG, "density": REAL, "mean": REAL, "max": SHORT, "importance": REAL,
        "interest": REAL, "documents": LONG, "entropy": REAL, "entropy_share": REAL, "varentropy": REAL,
        "quadrant": WORD,
        "encoder_norm": SHORT, "decoder_norm": SHORT, "encoder_decoder_cosine": SHORT, "skew": REAL, "kurtosis": REAL,
        "dead": pa.bool_(), "kept": pa.bool_(), "dropped": WORD, "histogram": pa.list_(LONG),
        **CERTIFICATES,
    }
)  # fmt: skip
TOKENS = pa.schema(
    {
        "latent": INT, "rank": INT, "token": INT, "piece": WORD, "count": LONG, "share": REAL, "background": REAL,
        "lift": REAL, "log_odds": REAL, "mean": REAL,
    }
)  # fmt: skip
DOCUMENTS = pa.schema({"latent": INT, "document": INT, "mean": SHORT, "max": SHORT})
EXAMPLES = pa.schema(
    {
        "latent": INT, "kind": WORD, "rank": INT, "document": INT, "title": WORD,
        "label": WORD, "context": INT, "position": INT, "row": LONG,
        "value": SHORT, "first": INT, "tokens": pa.list_(INT), "pieces": pa.list_(WORD), "values": pa.list_(SHORT),
    }
)  # fmt: skip


TOKEN_LISTS = {"tokens": pa.list_(INT), "pieces": pa.list_(WORD), "values": pa.list_(SHORT)}
RULES = pa.schema({"latent": INT, "offset": INT, **TOKEN_LISTS})
LOGITS = pa.schema({"latent": INT, "rank": INT, "side": WORD, "token": INT, "piece": WORD, "value": SHORT})
NEIGHBOURS = pa.schema({"latent": INT, "rank": INT, "neighbour": INT, "cosine": SHORT})
ENRICHMENT = pa.schema(
    {
        "latent": INT, "level": WORD, "label": WORD, "inside": LONG, "size": LONG, "labelled": LONG, "total": LONG,
        "odds_ratio": REAL, "p": REAL, "q": REAL,
    }
)  # fmt: skip


@contextmanager
def lines(path: Path | None, pieces: pa.Array) -> Iterator["Lines | None"]:
    """Open a file of JSON lines, which gets its name only when it is whole. If ``path`` is None, yield None.

    ``pieces``: the text of every token.
    """
    if path is None:
        yield None
        return

    with replacing(path) as temporary, temporary.open("wb") as file:
        writer = Lines(file, pieces)
        yield writer
        writer.close()


@dataclass(frozen=True)
class Words:
    """Texts to show. ``pieces``: of every token. ``titles``, ``labels``: of every document, null where it has none."""

    pieces: pa.Array
    titles: pa.Array
    labels: pa.Array


def examples(columns: Columns, found: list[Found], text: Text, words: Words) -> pa.Table:
    """Make `examples.parquet` for a range of latents, by latent, kind and rank. ``found``: the examples by kind."""
    table = pa.concat_tables([_table_of_kind(columns, of_kind, text, words) for of_kind in found])
    kind = np.repeat([KINDS.index(of_kind.kind) for of_kind in found], [len(of_kind.latent) for of_kind in found])
    return table.take(np.lexsort((table["rank"].to_numpy(), kind, table["latent"].to_numpy())))


def _table_of_kind(columns: Columns, found: Found, text: Text, words: Words) -> pa.Table:
    """Make the rows of `examples.parquet` for the examples of one kind."""
    # The windows' rows, one window after the other; `starts` cuts them into a list for each example.
    row, values = values_in(columns, found, text.rows)
    starts = pa.array(np.concatenate([[0], (found.end - found.first).cumsum()]).astype(np.int32))
    tokens = text.token[row]

    document = pa.array(text.document_of(found.row))
    context, position = text.place(found.row)
    return files.table(
        {
            "latent": found.latent + columns.first,
            "kind": pa.array([found.kind] * len(found.latent), WORD),
            "rank": found.rank,
            "document": document,
            "title": words.titles.take(document),
            "label": words.labels.take(document),
            "context": context,
            "position": position,
            "row": found.row,
            "value": found.value,
            "first": text.place(found.first)[1],
            "tokens": pa.ListArray.from_arrays(starts, pa.array(tokens)),
            "pieces": pa.ListArray.from_arrays(starts, words.pieces.take(pa.array(tokens))),
            "values": pa.ListArray.from_arrays(starts, pa.array(values)),
        },
        EXAMPLES,
    )


class Lines:
    """The examples as gzipped JSON lines: the content of `examples.parquet`, with values to six digits.

    There may be tens of millions of tokens, so the JSON of each distinct token is made once.
    """

    def __init__(self, file: IO[bytes], pieces: pa.Array) -> None:
        self._file = gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0)
        self._pieces = [json.dumps(piece, ensure_ascii=False) for piece in pieces.to_pylist()]

    def write(self, shown: pa.Table) -> None:
        """Append a line for each example."""
        names = [field.name for field in EXAMPLES if field.name not in ("tokens", "pieces", "values")]
        for batch in shown.to_batches(max_chunksize=files.ROW_GROUP):
            rows = zip(*(batch.column(name).to_pylist() for name in names), strict=True)
            tokens_of_rows, values_of_rows = batch.column("tokens").to_pylist(), batch.column("values").to_pylist()
            for row, tokens, values in zip(rows, tokens_of_rows, values_of_rows, strict=True):
                self._file.write(self._line(dict(zip(names, row, strict=True)), tokens, values).encode())

    def _line(self, row: dict[str, Any], tokens: list[int], values: list[float]) -> str:
        """Put one example in JSON. ``row``: all but its lists."""
        head = json.dumps({**row, "value": float(f"{row['value']:.6g}")}, ensure_ascii=False, separators=(",", ":"))
        pieces = ",".join([self._pieces[token] for token in tokens])
        numbers = ",".join([f"{value:.6g}" if value else "0" for value in values])
        return f'{head[:-1]},"tokens":[{",".join(map(str, tokens))}],"pieces":[{pieces}],"values":[{numbers}]}}\n'

    def close(self) -> None:
        """Write what gzip still holds back."""
        self._file.close()


class Arrays:
    """The examples as arrays of row numbers and of values, (latents, number) each, for three kinds of examples.

    -1 and NaN stand where a latent has fewer examples.
    """

    def __init__(self, latents: int, knobs: Examples) -> None:
        numbers = {"top": knobs.top, "random": knobs.random, "near": knobs.near}
        self.rows = {name: np.full((latents, number), -1, np.int32) for name, number in numbers.items()}
        self.values = {name: np.full((latents, number), np.nan, np.float32) for name, number in numbers.items()}

    def add(self, columns: Columns, found: Found) -> None:
        """Put in the examples ``found`` for a range of latents, if their kind has arrays."""
        if found.kind in self.rows:
            place = found.latent + columns.first, found.rank
            self.rows[found.kind][place] = found.row
            self.values[found.kind][place] = found.value if found.similarity is None else found.similarity

    def write(self, folder: Path) -> None:
        """Write the arrays under the names of Growth Signals, such as `topk_indices_<number>_<latents>.npy`.

        What is called zero there are near misses.
        """
        for kind, rows in self.rows.items():
            name, values_name = GROWTH_SIGNALS[kind]
            latents, number = rows.shape
            write_array(folder / f"{name}_indices_{number}_{latents}.npy", rows)
            write_array(folder / f"{name}_{values_name}_{number}_{latents}.npy", self.values[kind])
