"""Vectors that a source brings along: read them from a `.npy` or `.npz`, and check those of every kind of source."""

from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strata.corpus import values
from strata.corpus.document import Document
from strata.corpus.numbers import parsed
from strata.run.door import BadInput
from strata.tables import arrays

SUFFIXES = {".npy", ".npz"}
LISTED = 100  # bad rows that are named


class VectorCheck:
    """Checks the vectors of the documents of all sources: each must have the width of the first one.

    ``max_bad``: how many bad rows are tolerated. ``width``: the width of the vectors; 0 until the first one is seen.
    ``without_vector``: number of documents whose source has no vectors. ``bad``: reason -> number of documents with an
    unusable vector. ``bad_rows``: the first LISTED of these, each with its reason, for messages and meta.json.
    """

    def __init__(self, max_bad: int) -> None:
        self.max_bad, self.width, self.without_vector = max_bad, 0, 0
        self.bad: Counter[str] = Counter()
        self.bad_rows: list[str] = []

    def accepts(self, document: Document) -> bool:
        """Count the document, and say whether it is kept: one with an unusable vector is not.

        Raises BadInput after more than ``max_bad`` bad rows, which are probably a mistake of the query, and where some
        documents have vectors and others come from a source without them.
        """
        vector = document.vector  # bytes: float32 numbers of 4 bytes; str: why they are unusable; None: no column
        if vector is None:
            self.without_vector += 1
        elif isinstance(vector, str):
            self._refuse(document, vector, vector)
            return False
        else:
            width = len(vector) // 4
            self.width = self.width or width
            if width != self.width:
                self._refuse(document, "width", f"{width} numbers, not {self.width}")
                return False

        if self.without_vector and self.width:
            raise BadInput("some documents have vectors and others have none; name the column of each source as vector")
        return True

    def _refuse(self, document: Document, reason: str, sentence: str) -> None:
        """Count a bad row under ``reason`` and list it with ``sentence``. Raises BadInput if it is one too many."""
        self.bad[reason] += 1
        if len(self.bad_rows) < LISTED:
            self.bad_rows.append(f"{document.id or document.title}: {sentence}")
        if self.bad.total() > self.max_bad:
            raise BadInput(
                f"more than {self.max_bad} rows (fetch.corpus.max_bad_rows) have no usable vector, "
                f"the first ones: {'; '.join(self.bad_rows[:3])}"
            )

    def facts(self) -> dict[str, Any]:
        """Describe the vectors for the corpus' meta.json; an empty dictionary where there are none."""
        if not self.width:
            return {}
        bad_rows = {"count": self.bad.total(), "why": dict(self.bad), "first": self.bad_rows}
        return {"width": self.width, "bad_rows": bad_rows}


def rows(
    path: Path, vector: str | None, id: str | None, text: str | None, label: str | None
) -> Generator[Document, None, None]:
    """Yield a document for each row of a `.npy` or `.npz`.

    ``vector``, ``id``, ``text``, ``label``: the names of the arrays in a `.npz`. ``vector`` is "vectors" if it is None;
    the others may be missing. A `.npy` is one array without names: its rows are vectors, and ``vector`` does not count.

    Some megabytes of vectors are in memory at a time, or all of them if a `.npz` stores them column by column. The
    other arrays of a `.npz` are in memory whole.

    Raises BadInput where an array is missing, is damaged, has the wrong shape or type, or holds what is no text, id or
    label; and for a `.npy` if ``id``, ``text`` or ``label`` is given. A vector that is unusable raises nothing: its
    document says why (see :class:`Document`).
    """
    columns = {use: name for use, name in {"text": text, "label": label, "id": id}.items() if name is not None}
    if arrays.begins_npy(path):
        if columns:
            raise BadInput(f"{path} is one array without names, so it has no {next(iter(columns.values()))!r}")
        matrix = arrays.mapped(path)
        _check_matrix(path, matrix.shape, matrix.dtype)
        yield from _documents(path, matrix, {})
        return

    with arrays.archive(path) as file:
        matrix_name = vector or "vectors"
        names = [matrix_name, *columns.values()]
        if missing := next((name for name in names if name not in file.names), None):
            raise BadInput(f"{path} has no array {missing!r}; it has {', '.join(file.names)}")

        # Each of the other arrays must have one value for each vector.
        header = file.header(matrix_name)
        _check_matrix(path, header.shape, header.dtype)
        for name in columns.values():
            shape = file.header(name).shape
            if shape != header.shape[:1]:
                raise BadInput(f"{path}: {name} has the shape {shape}, but there are {header.shape[0]} vectors")

        values_by_use = {use: (name, file.read(name)) for use, name in columns.items()}
        with closing(file.rows(matrix_name)) as matrix:
            yield from _documents(path, matrix, values_by_use)


def _check_matrix(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Refuse an array that is not (row, width) of real numbers."""
    if len(shape) != 2 or dtype.kind not in "fiu":
        raise BadInput(f"{path} holds an array of shape {shape} and type {dtype}, not (row, width) of numbers")


def _documents(
    path: Path, matrix: Iterable[NDArray[Any]], columns: dict[str, tuple[str, NDArray[Any]]]
) -> Iterator[Document]:
    """Make a document of each row of ``matrix`` (row, width). ``columns``: use -> (name of the array, its values)."""
    for number, row in enumerate(matrix):
        fields: dict[str, str | None] = {}
        for use, (name, column) in columns.items():
            read = values.text if use == "text" else values.word  # a label or an id may be a number
            try:
                fields[use] = read(column[number])
            except ValueError as error:
                raise BadInput(f"{path}: row {number + 1} of the array {name!r} holds {error}") from None

        title = fields.get("id") or f"{path.name} {number + 1}"
        yield Document(
            title=title,
            label=fields.get("label"),
            text=fields.get("text") or "",
            id=fields.get("id"),
            vector=parsed(row),  # float32 bytes, or a text that says why the row is unusable
        )
