"""Vectors that a source brings along: a column of a table, an array, what a database returns."""

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


class Vectors:
    """Checks the vector of every document: all must have the width of the first one.

    ``most``: bad rows that are tolerated. ``width``: of the vectors, 0 until one was seen. ``without``: number of
    documents that have no vector. ``bad``: reason -> number of documents whose vector is unusable. ``rows``: the first
    LISTED of these, each with its reason.
    """

    def __init__(self, most: int) -> None:
        self.most, self.width, self.without = most, 0, 0
        self.bad: Counter[str] = Counter()
        self.rows: list[str] = []

    def takes(self, document: Document) -> bool:
        """Say whether the document is kept; one with an unusable vector is not.

        Raises BadInput after more than ``most`` bad rows, which are probably a mistake of the query, and where some
        documents have vectors and others come from a source without them.
        """
        vector = document.vector  # bytes: float32 numbers of 4 bytes; str: why they are unusable
        if vector is None:
            self.without += 1
        elif isinstance(vector, bytes) and len(vector) == 4 * (self.width or len(vector) // 4):
            self.width = len(vector) // 4
        else:
            why = vector if isinstance(vector, str) else f"{len(vector) // 4} numbers, not {self.width}"
            self.bad["width" if isinstance(vector, bytes) else vector] += 1

            if len(self.rows) < LISTED:
                self.rows.append(f"{document.id or document.title}: {why}")
            if self.bad.total() > self.most:
                raise BadInput(
                    f"more than {self.most} rows (fetch.corpus.max_bad_rows) have no usable vector, "
                    f"the first ones: {'; '.join(self.rows[:3])}"
                )
            return False

        if self.without and self.width:
            raise BadInput("some documents have vectors and others have none; name the column of each source as vector")
        return True

    def facts(self) -> dict[str, Any]:
        """Describe the vectors for the corpus' meta.json; an empty dictionary where there are none."""
        if not self.width:
            return {}
        return {"width": self.width, "bad_rows": {"count": self.bad.total(), "why": dict(self.bad), "first": self.rows}}


def rows(
    path: Path, vector: str | None, id: str | None, text: str | None, label: str | None
) -> Generator[Document, None, None]:
    """Yield a document for each row of a `.npy`, or of the named arrays of a `.npz`.

    A few rows of vectors are in memory at a time. The other arrays of a `.npz` are in memory whole.
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
        wanted = {"vector": vector or "vectors", **columns}
        if missing := next((name for name in wanted.values() if name not in file.names), None):
            raise BadInput(f"{path} has no array {missing!r}; it has {', '.join(file.names)}")

        # Each other array has one value a vector.
        header = file.header(wanted["vector"])
        _check_matrix(path, header.shape, header.dtype)
        for name in columns.values():
            shape = file.header(name).shape
            if shape != header.shape[:1]:
                raise BadInput(f"{path}: {name} has the shape {shape}, but there are {header.shape[0]} vectors")

        values_by_use = {use: (name, file.read(name)) for use, name in columns.items()}
        with closing(file.rows(wanted["vector"])) as matrix:
            yield from _documents(path, matrix, values_by_use)


def _check_matrix(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Refuse an array that is not (row, width) of real numbers."""
    if len(shape) != 2 or dtype.kind not in "fiu":
        raise BadInput(f"{path} holds an array of shape {shape} and type {dtype}, not (row, width) of numbers")


def _documents(
    path: Path, matrix: Iterable[NDArray[Any]], columns: dict[str, tuple[str, NDArray[Any]]]
) -> Iterator[Document]:
    """Make a document of each row of ``matrix`` (row, width). ``columns``: use -> (name of the array, its values)."""
    for place, row in enumerate(matrix):
        fields: dict[str, str | None] = {}
        for use, (name, column) in columns.items():
            try:
                fields[use] = (values.text if use == "text" else values.word)(column[place])
            except ValueError as error:
                raise BadInput(f"{path}: row {place + 1} of the array {name!r} holds {error}") from None

        title = fields.get("id") or f"{path.name} {place + 1}"
        yield Document(title, fields.get("label"), fields.get("text") or "", fields.get("id"), parsed(row))
