"""Files of rows -> documents: CSV with any separator, TSV, JSON lines, Parquet and plain text, read as streams."""

import bz2
import csv
import gzip
import io
import json
import math
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import IO, Any, Literal, cast

import pyarrow as pa
import pyarrow.parquet as pq

from stages.door import BadInput
from stages.fetch.document import Document
from stages.vectors import Blob, parsed

SUFFIXES = {".csv", ".tsv", ".jsonl", ".ndjson", ".parquet"}
PACKED = {".bz2": bz2.open, ".gz": gzip.open}
SEPARATORS = ",;\t|"  # what is tried when none is given

Unit = Literal["line", "paragraph", "section", "file"]


@dataclass(frozen=True)
class Columns:
    """Which columns hold what; all but ``text`` may be None, and ``text`` too where there is a ``vector``.

    ``where``: what the source is called. ``blob``: the numbers of a vector that is bytes.
    """

    where: str
    text: str | None
    label: str | None = None
    title: str | None = None
    id: str | None = None
    vector: str | None = None
    blob: Blob = "float32"

    @property
    def named(self) -> dict[str, str]:
        """Use -> column."""
        uses = ("text", "label", "title", "id", "vector")
        return {use: name for use in uses if (name := getattr(self, use)) is not None}

    def check(self, there: Iterable[str]) -> None:
        """Refuse a column that is not among those that are ``there``."""
        there = list(there)
        for use, name in self.named.items():
            if name not in there:
                raise BadInput(f"{self.where} has no column {name!r} (asked for as {use}); it has {', '.join(there)}")

    def document(self, row: dict[str, Any], number: int) -> Document:
        """One row as a document; without a title column it is named after its id or its place: `data.csv 12`."""
        text = row.get(self.text) if self.text else None
        if text is not None and not isinstance(text, str):
            raise BadInput(f"{self.where}: row {number} of column {self.text!r} holds {text!r}, which is not text")
        title, label, id = (_word(row.get(name)) if name else None for name in (self.title, self.label, self.id))
        vector = parsed(row.get(self.vector), self.blob) if self.vector else None
        return Document(title or id or f"{self.where} {number}", label, text or "", id, vector)

    def documents(self, rows: Iterable[dict[str, Any]]) -> Iterator[Document]:
        """All rows; the columns of the first are taken for those of the file."""
        for number, row in enumerate(rows, start=1):
            if number == 1:
                self.check(row)
            yield self.document(row, number)


def _word(value: Any) -> str | None:
    """A label or title as text; None, NaN and nothing are none. A whole float is written as 3, not 3.0."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() or None


def documents(path: Path, columns: Columns, separator: str | None) -> Generator[Document, None, None]:
    """The rows of a table, by its suffix (`.bz2` and `.gz` on top are unpacked). ``separator`` None: found out."""
    suffix = kind(path)
    if suffix == ".parquet":
        yield from columns.documents(_parquet(path, columns))
    elif suffix in (".jsonl", ".ndjson"):
        yield from columns.documents(_json_lines(path))
    else:
        yield from columns.documents(_csv(path, "\t" if suffix == ".tsv" and separator is None else separator))


def text_documents(path: Path, unit: Unit) -> Generator[Document, None, None]:
    """A plain text file: a document a line, a paragraph (parted by blank lines), or the whole."""
    with _opened(path) as file:
        lines = _decoded(path, file)
        if unit == "line":
            pieces: Iterable[str] = (line.strip() for line in lines if line.strip())
        elif unit == "paragraph":
            pieces = ("".join(group) for blank, group in groupby(lines, lambda line: not line.strip()) if not blank)
        else:
            pieces = ["".join(lines)]
        for number, piece in enumerate(pieces, start=1):
            yield Document(path.name if unit == "file" else f"{path.name} {number}", None, piece)


def kind(path: Path) -> str:
    """The suffix that says what is inside: `.csv` for data.csv.gz."""
    return Path(path.stem).suffix.lower() if path.suffix.lower() in PACKED else path.suffix.lower()


def _opened(path: Path) -> IO[str]:
    opener = PACKED.get(path.suffix.lower())
    if opener is None:
        return path.open(encoding="utf-8-sig", newline="")
    return io.TextIOWrapper(cast(IO[bytes], opener(path)), encoding="utf-8-sig", newline="")


def _decoded(path: Path, file: IO[str]) -> Iterator[str]:
    """The file's lines; what cannot be unpacked or is not UTF-8 becomes a sentence."""
    try:
        yield from file
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except (EOFError, OSError) as error:
        raise BadInput(f"{path} cannot be read: {error}") from None


def _csv(path: Path, separator: str | None) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(2**31 - 1)  # the default of 131072 characters is shorter than many a document
    with _opened(path) as file:
        rows = csv.DictReader(_decoded(path, file), delimiter=separator or _sniffed(path))
        try:
            if not rows.fieldnames:
                raise BadInput(f"{path} is empty: it has no line of column names")
            yield from rows
        except csv.Error as error:
            raise BadInput(f"{path}, line {rows.line_num}, is not CSV: {error}") from None


def _sniffed(path: Path) -> str:
    """The separator that the line of column names holds most often; a single column has none, so any will do.

    The standard library's sniffer looks at the text as well, where a comma proves nothing.
    """
    with _opened(path) as file:
        names = next(_decoded(path, file), "")
    return max(SEPARATORS, key=names.count)


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with _opened(path) as file:
        for number, line in enumerate(_decoded(path, file), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise BadInput(f"{path}, line {number}, is not JSON: {error}") from None
            if not isinstance(row, dict):
                raise BadInput(f"{path}, line {number}, is not a JSON object with columns, but {line.strip()[:40]}")
            yield row


def _parquet(path: Path, columns: Columns) -> Iterator[dict[str, Any]]:
    wanted = list(columns.named.values())
    try:
        with pq.ParquetFile(path) as file:
            columns.check(file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=1024, columns=list(dict.fromkeys(wanted))):
                yield from batch.to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise BadInput(f"{path} is not a whole Parquet file: {error}") from None
