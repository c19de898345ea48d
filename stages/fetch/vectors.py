"""Vectors that a source brings along: a column of a table, an array, what a database returns."""

from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.door import BadInput
from stages.fetch.document import Document
from stages.vectors import parsed

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


def arrays(
    path: Path, vector: str | None, id: str | None, text: str | None, label: str | None
) -> Generator[Document, None, None]:
    """The rows of a `.npy`, or of the arrays of a `.npz` that are named; memory holds a `.npy`'s mapped pages alone."""
    rows, columns = _opened(path, vector, {"id": id, "text": text, "label": label})
    if rows.ndim != 2 or rows.dtype.kind not in "fiu":
        raise BadInput(
            f"{path} holds an array of shape {rows.shape} and type {rows.dtype}, not (row, width) of numbers"
        )
    if short := next((name for name, column in columns.items() if len(column) != len(rows)), None):
        raise BadInput(f"{path}: {short} has {len(columns[short])} entries, but there are {len(rows)} vectors")
    for number in range(len(rows)):
        said = {name: str(column[number]) for name, column in columns.items()}
        name = said.get("id") or f"{path.name} {number + 1}"
        yield Document(name, said.get("label"), said.get("text", ""), said.get("id"), parsed(rows[number]))


def _opened(
    path: Path, vector: str | None, named: dict[str, str | None]
) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
    try:
        file = np.load(path, mmap_mode="r")
    except (ValueError, OSError, EOFError) as error:
        raise BadInput(f"{path} is no array of plain numbers and texts: {' '.join(str(error).split())}") from None
    if isinstance(file, np.ndarray):
        return file, {}
    there = ", ".join(file.files)
    wanted = {use: name for use, name in {"vector": vector or "vectors", **named}.items() if name is not None}
    if missing := next((name for name in wanted.values() if name not in file.files), None):
        raise BadInput(f"{path} has no array {missing!r}; it has {there}")
    found = {use: file[name] for use, name in wanted.items()}
    return found.pop("vector"), found
