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
    """Sees every document: which have a vector of the ``width`` of the first, and which should have one and do not."""

    def __init__(self, most: int) -> None:
        self.most, self.width, self.without = most, 0, 0
        self.bad: Counter[str] = Counter()
        self.rows: list[str] = []

    def takes(self, document: Document) -> bool:
        """Whether the document stays. Raises BadInput after more than ``most`` bad rows, which are probably a mistake
        of the query, and where some documents have vectors and others never could."""
        vector = document.vector
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
        """What the corpus' meta.json says of them; nothing where there are none."""
        if not self.width:
            return {}
        return {"width": self.width, "bad_rows": {"count": self.bad.total(), "why": dict(self.bad), "first": self.rows}}


def rows(
    path: Path, vector: str | None, id: str | None, text: str | None, label: str | None
) -> Generator[Document, None, None]:
    """The rows of a `.npy`, or of the arrays of a `.npz` that are named. Some rows of vectors are in memory at a time;
    of a `.npz`, the other arrays are too."""
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
        head = file.header(wanted["vector"])
        _check_matrix(path, head.shape, head.dtype)
        for name in columns.values():
            shape = file.header(name).shape
            if shape != head.shape[:1]:
                raise BadInput(f"{path}: {name} has the shape {shape}, but there are {head.shape[0]} vectors")
        held = {use: (name, file.read(name)) for use, name in columns.items()}
        with closing(file.rows(wanted["vector"])) as matrix:
            yield from _documents(path, matrix, held)


def _check_matrix(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if len(shape) != 2 or dtype.kind not in "fiu":
        raise BadInput(f"{path} holds an array of shape {shape} and type {dtype}, not (row, width) of numbers")


def _documents(
    path: Path, matrix: Iterable[NDArray[Any]], columns: dict[str, tuple[str, NDArray[Any]]]
) -> Iterator[Document]:
    """``columns``: use -> (name of the array, its values)."""
    for place, row in enumerate(matrix):
        said: dict[str, str | None] = {}
        for use, (name, column) in columns.items():
            try:
                said[use] = (values.text if use == "text" else values.word)(column[place])
            except ValueError as error:
                raise BadInput(f"{path}: row {place + 1} of the array {name!r} holds {error}") from None
        title = said.get("id") or f"{path.name} {place + 1}"
        yield Document(title, said.get("label"), said.get("text") or "", said.get("id"), parsed(row))
