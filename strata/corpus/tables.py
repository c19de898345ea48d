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
    """Which columns hold what. All but ``text`` may be None, and ``text`` may be None too where there is a ``vector``.

    ``where``: the name of the source, for messages. ``blob``: the type of the numbers in a vector that is stored as
    bytes; None: float32, if that fits.
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
        """Map each use to its column."""
        uses = ("text", "label", "title", "id", "vector")
        return {use: name for use in uses if (name := getattr(self, use)) is not None}

    def check(self, there: Iterable[str]) -> None:
        """Refuse a source whose columns ``there`` lack a named column, or hold it twice."""
        columns = list(there)
        for use, name in self.named.items():
            if name not in columns:
                listed = ", ".join(columns[:LISTED]) + (f" … ({len(columns)} in all)" if len(columns) > LISTED else "")
                raise BadInput(f"{self.where} has no column {name!r} (asked for as {use}); it has {listed}")
            if columns.count(name) > 1:
                raise BadInput(
                    f"{self.where} has {columns.count(name)} columns {name!r} (asked for as {use}); rename one"
                )

    def document(self, row: dict[str, Any], number: int) -> Document:
        """Make a document of a row (column -> value), the ``number``-th of its source.

        Without a title, the document is named after its id or its place: `data.csv 12`.
        """
        title, label, id = (self._read(word, row, name, number) for name in (self.title, self.label, self.id))
        body = self._read(text, row, self.text, number) or ""
        return Document(title or id or f"{self.where} {number}", label, body, id, self._vector(row, number))

    def _vector(self, row: dict[str, Any], number: int) -> bytes | str | None:
        """Read a row's vector as float32 bytes; a text says why it is unusable, and None that no column holds vectors.

        Raises BadInput where the bytes of one row look like another type of numbers: then all rows probably are.
        """
        vector = parsed(row.get(self.vector), self.blob) if self.vector else None
        if self.blob is None and vector in KINDS.values():
            raise BadInput(
                f"{self.where}: row {number} of column {self.vector!r} holds {vector}; if it is float32 all the same, "
                "set blob: float32"
            )
        return vector

    def _read(
        self, reader: Callable[[Any], str | None], row: dict[str, Any], name: str | None, number: int
    ) -> str | None:
        """Read the value of column ``name``; None if no column has this use or the row has no such key."""
        if name is None:
            return None
        try:
            return reader(row.get(name))
        except ValueError as error:
            raise BadInput(f"{self.where}: row {number} of column {name!r} holds {error}") from None

    def documents(self, rows: Iterable[dict[str, Any]]) -> Iterator[Document]:
        """Make a document of each row. The columns of the first row are checked for all."""
        for number, row in enumerate(rows, start=1):
            if number == 1:
                self.check(row)
            yield self.document(row, number)


def documents(path: Path, columns: Columns, separator: str | None) -> Generator[Document, None, None]:
    """Yield a document for each row of a table file, whose suffix says how it is read (`.csv.gz` as `.csv`).

    ``separator``: of a CSV or TSV; None: the tab for .tsv, else the one that the line of column names holds most often.
    """
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
    """Yield the documents of a plain text file: each line, each paragraph (blank lines part them), or the whole."""
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


def _joined(path: Path, unit: Unit, parts: Iterable[str]) -> str:
    """Join the lines ``parts`` into one text. Raises BadInput as soon as it is too long for a document."""
    joined: list[str] = []
    chars = 0
    for line in parts:
        joined.append(line)
        chars += len(line)
        if chars > LONGEST:
            raise BadInput(f"{path}: a {unit} has more than {LONGEST:,} characters; set unit: line, or cut it")
    return "".join(joined)


# --- values between separators ----------------------------------------------------------------------------------------


class _Lines:
    """An iterator over lines that counts them in ``number`` and can look at the next line without taking it."""

    def __init__(self, source: Iterator[str]) -> None:
        self.source, self.number = source, 0
        self.peeked: list[str] = []  # the next line, if it was looked at

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self.peeked.pop() if self.peeked else next(self.source)
        self.number += 1
        return line

    def ahead(self) -> str | None:
        """Return the next line without taking it; None at the end."""
        if not self.peeked:
            self.peeked = list(islice(self.source, 1))
        return self.peeked[0] if self.peeked else None


def _separated(path: Path, columns: Columns, separator: str | None) -> Generator[dict[str, Any], None, None]:
    """Yield the rows of a CSV or TSV as column -> value.

    Raises BadInput, with the line, for a row that does not have exactly one value for each column name.
    """
    with closing(lines(path)) as source:
        numbered = _Lines(source)
        header = next((line for line in numbered if line.strip()), None)
        if header is None:
            raise BadInput(f"{path} is empty: it has no line of column names")
        if header.lstrip().startswith(("[{", '{"')) or header.strip() in ("[", "{"):
            raise BadInput(f"{path} is JSON, not CSV: write one object a line, and call the file .jsonl")

        separator = separator or _separator(header)
        records = (_tabbed if separator == "\t" else _quoted)(path, header, numbered, separator)
        header_line, names = next(records)
        columns.check(names)

        for line_number, values in records:
            if len(values) != len(names):
                raise BadInput(
                    f"{path}, line {line_number}, has {_count(len(values), 'value')}, but line {header_line} has "
                    f"{_count(len(names), 'name')}; a value that holds {separator!r} stands between quotes"
                )
            yield dict(zip(names, values, strict=True))


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"


def _separator(header: str) -> str:
    """Choose the separator that the line of column names holds most often.

    The line of a single column holds none. Then a control character is returned that no text holds, so that a comma in
    a value does not split it. The standard library's sniffer is not used: it also counts the commas of the values,
    which may be text.
    """
    separator = max(SEPARATORS, key=header.count)
    return separator if separator in header else "\x1f"


def _quoted(path: Path, line: str, rest: _Lines, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line where it begins, values) of each record of ``line`` and the ``rest``, with quotes as in RFC 4180.

    Raises BadInput for a quote that is never closed, rather than take the rest of the file for one value.
    """
    csv.field_size_limit(LONGEST)  # the default of 131072 characters is shorter than many a document
    reader = csv.reader(chain([line], rest), delimiter=separator, strict=True)
    begin = rest.number  # `line` was taken from `rest`, so this is its number

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
        if values:  # a blank line is no record
            yield begin, values
        begin = rest.number + 1


def _tabbed(path: Path, header: str, rest: _Lines, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line where it begins, values) of each record of a TSV: the ``header``, then the ``rest``.

    In a TSV a quote is a character like any other, and each line is a record. But some programs write quotes all the
    same. So a value loses the quotes around it if those inside it are doubled. And where a line, or the line after it,
    has too few or too many tabs, a value that begins with a quote is read as :func:`_quoted` reads it: it may hold a
    tab or an end of line.
    """
    width = header.count(separator) + 1
    for line in chain([header], rest):
        begin = rest.number
        values = line.rstrip("\r\n").split(separator)

        # The last value may open a quote that a later line closes: then the following line has not its own width.
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
    """Remove the quotes around a value whose inner quotes are doubled; return any other value as it is."""
    inner = value[1:-1]
    if len(value) > 1 and value[0] == value[-1] == '"' and '"' not in inner.replace('""', ""):
        return inner.replace('""', '"')
    return value


# --- JSON and Parquet -------------------------------------------------------------------------------------------------


def _keys(path: Path, wanted: set[str]) -> list[str]:
    """List the keys of the file's objects, which are read until all ``wanted`` keys were seen.

    More than one object may have to be read, because an object may leave a key out where it has no value.
    """
    seen: dict[str, None] = {}  # a set in the order of the file
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
    """Yield the object of each line. Raises BadInput, with the line, for anything else."""
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
    """Make a JSON object. Raises ValueError for a key that stands twice, of which Python would keep the last value."""
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice")
    return row


def _parquet(path: Path, columns: Columns) -> Generator[dict[str, Any], None, None]:
    """Yield the rows of a Parquet file, of which only the named columns are read."""
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
    """Replace the number of a class by its name. -1 stands for no class, and becomes None.

    Without ``names``, or for what is no number, ``value`` is returned as it is; so is a number that has no name.
    """
    if names is None or not isinstance(value, int):
        return value
    return None if value == -1 else names[value] if 0 <= value < len(names) else value


def _classes(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """Read column -> names of its classes, as the package datasets stores them in a Parquet file's metadata.

    Metadata of another form, which any tool may write there, name no classes.
    """
    try:
        features = dict(json.loads(metadata[b"huggingface"])["info"]["features"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}

    # A feature may also be a list, which holds the feature of its items.
    classes = {
        name: feature.get("names")
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    }
    return {name: names for name, names in classes.items() if isinstance(names, list)}


def _batch(path: Path, file: pq.FileMetaData, names: list[str]) -> int:
    """Choose how many rows to unpack at once, so that long rows do not fill the memory.

    Raises BadInput for a file whose rows are too long for documents.
    """
    largest = 1  # bytes of a row of the columns ``names``, on average over the row group where that is largest
    for number in range(file.num_row_groups):
        group = file.row_group(number)
        chunks = (group.column(place) for place in range(group.num_columns))
        size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.partition(".")[0] in names)
        largest = max(largest, size // max(group.num_rows, 1))

    if largest > 4 * LONGEST:  # bytes: a character in UTF-8 has at the most four
        raise BadInput(f"{path} has rows of {largest:,} bytes; a document has at the most {LONGEST:,} characters")
    return max(1, min(ROWS, 2 * LONGEST // largest))
