"""Files of rows -> documents: CSV with any separator, TSV, JSON lines, Parquet and plain text, read as streams."""

import csv
import json
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from strata.corpus.document import Document
from strata.corpus.knobs import Unit
from strata.corpus.lines import LONGEST, kind, lines
from strata.corpus.numbers import KINDS, Blob, parsed
from strata.corpus.values import text, word
from strata.run.door import BadInput

JSON = {".json", ".jsonl", ".ndjson"}
SUFFIXES = {".csv", ".tsv", ".parquet", *JSON}
SEPARATORS = ",;\t|"  # what is tried when none is given
LISTED = 20  # columns that a message names
ROWS = 1024  # of Parquet that are unpacked at once, unless they are long


@dataclass(frozen=True)
class Columns:
    """Which columns hold what; all but ``text`` may be None, and ``text`` too where there is a ``vector``.

    ``where``: what the source is called. ``blob``: the numbers of a vector that is bytes;
    None: they are found out.
    """

    where: str
    text: str | None
    label: str | None = None
    title: str | None = None
    id: str | None = None
    vector: str | None = None
    blob: Blob | None = None

    @property
    def named(self) -> dict[str, str]:
        """Use -> column."""
        uses = ("text", "label", "title", "id", "vector")
        return {use: name for use in uses if (name := getattr(self, use)) is not None}

    def check(self, there: Iterable[str]) -> None:
        """Refuse a column that is not among those that are ``there``, or is there twice."""
        there = list(there)
        for use, name in self.named.items():
            if name not in there:
                listed = ", ".join(there[:LISTED]) + (f" … ({len(there)} in all)" if len(there) > LISTED else "")
                raise BadInput(f"{self.where} has no column {name!r} (asked for as {use}); it has {listed}")
            if there.count(name) > 1:
                raise BadInput(
                    f"{self.where} has {there.count(name)} columns {name!r} (asked for as {use}); rename one"
                )

    def document(self, row: dict[str, Any], number: int) -> Document:
        """One row as a document; without a title column it is named after its id or its place: `data.csv 12`."""
        title, label, id = (self._read(word, row, name, number) for name in (self.title, self.label, self.id))
        said = self._read(text, row, self.text, number) or ""
        return Document(title or id or f"{self.where} {number}", label, said, id, self._vector(row, number))

    def _vector(self, row: dict[str, Any], number: int) -> bytes | str | None:
        vector = parsed(row.get(self.vector), self.blob) if self.vector else None
        if self.blob is None and vector in KINDS.values():  # what was guessed of one row holds for all
            raise BadInput(
                f"{self.where}: row {number} of column {self.vector!r} holds {vector}; if it is float32 all the same, "
                "set blob: float32"
            )
        return vector

    def _read(
        self, reader: Callable[[Any], str | None], row: dict[str, Any], name: str | None, number: int
    ) -> str | None:
        """The value of column ``name``; None if there is no such use or the row has no such key."""
        if name is None:
            return None
        try:
            return reader(row.get(name))
        except ValueError as error:
            raise BadInput(f"{self.where}: row {number} of column {name!r} holds {error}") from None

    def documents(self, rows: Iterable[dict[str, Any]]) -> Iterator[Document]:
        """All rows; the columns of the first are taken for those of the file."""
        for number, row in enumerate(rows, start=1):
            if number == 1:
                self.check(row)
            yield self.document(row, number)


def documents(path: Path, columns: Columns, separator: str | None) -> Generator[Document, None, None]:
    """The rows of a table, by its suffix (what is packed on top is unpacked). ``separator`` None: found out."""
    suffix = kind(path)
    if suffix == ".parquet":
        rows = _parquet(path, columns)
    elif suffix in JSON:
        columns.check(_keys(path, set(columns.named.values())))
        rows = _json_lines(path)
    else:
        rows = _separated(path, columns, "\t" if suffix == ".tsv" and separator is None else separator)
    with closing(rows):
        for number, row in enumerate(rows, start=1):
            yield columns.document(row, number)


def text_documents(path: Path, unit: Unit) -> Generator[Document, None, None]:
    """A plain text file: a document a line, a paragraph (parted by blank lines), or the whole."""
    with closing(lines(path)) as source:
        if unit == "line":
            pieces: Iterable[str] = (line.strip() for line in source if line.strip())
        elif unit == "paragraph":
            groups = groupby(source, lambda line: not line.strip())
            pieces = (_joined(path, unit, group) for blank, group in groups if not blank)
        else:
            pieces = [_joined(path, unit, source)]
        for number, piece in enumerate(pieces, start=1):
            yield Document(path.name if unit == "file" else f"{path.name} {number}", None, piece)


def _joined(path: Path, unit: Unit, some: Iterable[str]) -> str:
    """Lines as one text, which may not be too long for a document."""
    held: list[str] = []
    chars = 0
    for line in some:
        held.append(line)
        chars += len(line)
        if chars > LONGEST:
            raise BadInput(f"{path}: a {unit} has more than {LONGEST:,} characters; set unit: line, or cut it")
    return "".join(held)


# --- values between separators ----------------------------------------------------------------------------------------


class _Lines:
    """Lines one by one, how many were taken, and a look at the next one."""

    def __init__(self, source: Iterator[str]) -> None:
        self.source, self.number = source, 0
        self.seen: list[str] = []  # the next line, if it was looked at

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self.seen.pop() if self.seen else next(self.source)
        self.number += 1
        return line

    def ahead(self) -> str | None:
        """The next line, which stays the next; None at the end."""
        if not self.seen:
            self.seen = list(islice(self.source, 1))
        return self.seen[0] if self.seen else None


def _separated(path: Path, columns: Columns, separator: str | None) -> Generator[dict[str, Any], None, None]:
    """Rows of a CSV or TSV. Every row has as many values as there are names, or it is refused with its line."""
    with closing(lines(path)) as source:
        numbered = _Lines(source)
        first = next((line for line in numbered if line.strip()), None)
        if first is None:
            raise BadInput(f"{path} is empty: it has no line of column names")
        if first.lstrip().startswith(("[{", '{"')) or first.strip() in ("[", "{"):
            raise BadInput(f"{path} is JSON, not CSV: write one object a line, and call the file .jsonl")

        separator = separator or _separator(first)
        records = (_tabbed if separator == "\t" else _quoted)(path, first, numbered, separator)
        head, names = next(records)
        columns.check(names)
        for number, values in records:
            if len(values) != len(names):
                raise BadInput(
                    f"{path}, line {number}, has {_count(len(values), 'value')}, but line {head} has "
                    f"{_count(len(names), 'name')}; a value that holds {separator!r} stands between quotes"
                )
            yield dict(zip(names, values, strict=True))


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"


def _separator(names: str) -> str:
    """The separator that the line of column names holds most often. A single column has none: then a control character
    that no text holds, so that a comma in it parts nothing.

    The standard library's sniffer looks at the text as well, where a comma proves nothing.
    """
    separator = max(SEPARATORS, key=names.count)
    return separator if separator in names else "\x1f"


def _quoted(path: Path, first: str, rest: _Lines, separator: str) -> Iterator[tuple[int, list[str]]]:
    """(line where it begins, values) of each record, quotes as in RFC 4180: one that is never closed is an error, and
    does not take the rest of the file for one value."""
    csv.field_size_limit(LONGEST)  # the default of 131072 characters is shorter than many a document
    reader = csv.reader(chain([first], rest), delimiter=separator, strict=True)
    begin = rest.number  # the first line was taken
    while True:
        try:
            values = next(reader, None)
        except csv.Error as error:
            raise BadInput(
                f"{path}, line {begin}, is not CSV: {error}, by line {rest.number}; a quote that opens a value has to "
                "be closed, and one inside it written twice"
            ) from None
        if values is None:
            return
        if values:
            yield begin, values
        begin = rest.number + 1


def _tabbed(path: Path, first: str, rest: _Lines, separator: str) -> Iterator[tuple[int, list[str]]]:
    """(line where it begins, values) of each record of a TSV.

    There a quote is a character like others, so that a line is a record. Some programs quote all the same: a value in
    quotes whose inner ones are doubled loses them, and where a line or the one after it has too few or too many tabs,
    a value that begins with a quote is read as :func:`_quoted` would: it may hold a tab or an end of line.
    """
    width = first.count(separator) + 1
    for line in chain([first], rest):
        begin = rest.number
        values = line.rstrip("\r\n").split(separator)
        whole = len(values) == width
        if whole and values[-1].startswith('"') and _without_quotes(values[-1]) == values[-1]:
            following = rest.ahead()
            whole = following is None or following.count(separator) + 1 == width
        if whole:
            yield begin, [_without_quotes(value) for value in values]
        elif any(value.startswith('"') for value in values):
            yield next(_quoted(path, line, rest, separator))
        elif line.strip():
            yield begin, values


def _without_quotes(value: str) -> str:
    inner = value[1:-1]
    if len(value) > 1 and value[0] == value[-1] == '"' and '"' not in inner.replace('""', ""):
        return inner.replace('""', '"')
    return value


# --- JSON and Parquet -------------------------------------------------------------------------------------------------


def _keys(path: Path, wanted: set[str]) -> list[str]:
    """The keys of the file's objects, read until all ``wanted`` were seen: one may be missing wherever it has no
    value."""
    seen: dict[str, None] = {}
    with closing(_json_lines(path)) as rows:
        for row in rows:
            seen.update(dict.fromkeys(row))
            if wanted <= seen.keys():
                break
        else:
            if not seen:
                raise BadInput(f"{path} is empty: it holds no JSON object")
    return list(seen)


def _json_lines(path: Path) -> Generator[dict[str, Any], None, None]:
    with closing(lines(path)) as source:
        for number, line in enumerate(source, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line, object_pairs_hook=_object)
            except RecursionError:
                raise BadInput(f"{path}, line {number}, is nested too deep for JSON of rows") from None
            except ValueError as error:
                why = f"{error}; each line holds a whole object"
                raise BadInput(f"{path}, line {number}, is not JSON: {why}") from None
            if not isinstance(row, dict):
                raise BadInput(
                    f"{path}, line {number}, is not a JSON object with columns, but {line.strip()[:40]}; write an "
                    "object a line, as `jq -c '.[]'` does with an array"
                )
            yield row


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, whose keys must differ: of two values that stand under one key, Python would take the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice")
    return found


def _parquet(path: Path, columns: Columns) -> Generator[dict[str, Any], None, None]:
    try:
        with pq.ParquetFile(path) as file:
            columns.check(file.schema_arrow.names)
            names = list(dict.fromkeys(columns.named.values()))
            classes = _classes(file.schema_arrow.metadata or {})
            for batch in file.iter_batches(batch_size=_batch(path, file.metadata, names), columns=names):
                for row in batch.to_pylist():
                    yield {name: class_name(value, classes.get(name)) for name, value in row.items()}
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} holds text that is not UTF-8: {error.reason}") from None
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"{path} is not a whole Parquet file: {' '.join(str(error).split())}") from None


def class_name(value: Any, names: list[str] | None) -> Any:
    """What a number of a class column stands for, if ``names`` says so; -1, the class of what has none, is None."""
    if names is None or not isinstance(value, int):
        return value
    return None if value == -1 else names[value] if 0 <= value < len(names) else value


def _classes(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """Column -> names of its classes, as the package datasets notes them in a Parquet file."""
    noted = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    return {name: kind["names"] for name, kind in noted.items() if kind.get("_type") == "ClassLabel"}


def _batch(path: Path, file: pq.FileMetaData, names: list[str]) -> int:
    """How many rows to unpack at once, so that long ones do not fill the memory."""
    largest = 1
    for number in range(file.num_row_groups):
        group = file.row_group(number)
        parts = (group.column(place) for place in range(group.num_columns))
        size = sum(part.total_uncompressed_size for part in parts if part.path_in_schema.partition(".")[0] in names)
        largest = max(largest, size // max(group.num_rows, 1))
    if largest > 4 * LONGEST:  # bytes: a character in UTF-8 has at the most four
        raise BadInput(f"{path} has rows of {largest:,} bytes; a document has at the most {LONGEST:,} characters")
    return max(1, min(ROWS, 2 * LONGEST // largest))
