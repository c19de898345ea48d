"""What stands where: the token, document and context of every activation row, and windows of text around them.

A *segment* is a run of rows whose tokens stand side by side in one context and belong to one document. A window lies
within a segment, so it is a range of rows, and what is shown of it is unbroken text.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from strata.rows.shards import Contexts

if TYPE_CHECKING:
    pass

PEAK = 0.75  # where in a window its peak stands: a model reads what comes before, not what follows
Ints = NDArray[Any]


@dataclass(frozen=True)
class Text:
    """``token`` and ``segment``: (rows,) int32, memory-mapped. ``starts``: (segments + 1,) the first row of each.

    ``context``, ``position`` (of the first row) and ``document``: (segments,). ``window``: its number of tokens.
    What is in memory is 20 bytes a segment; a context has one or a few.
    """

    token: NDArray[np.int32]
    segment: NDArray[np.int32]
    starts: NDArray[np.int64]
    context: NDArray[np.int32]
    position: NDArray[np.int32]
    document: NDArray[np.int32]
    window: int

    @property
    def rows(self) -> int:
        return int(self.starts[-1])

    @cached_property
    def document_rows(self) -> NDArray[np.int64]:
        """(documents,) how many rows each document of the corpus has; 0 for one that was not read."""
        return np.bincount(self.document, np.diff(self.starts)).astype(np.int64)

    @cached_property
    def documents(self) -> NDArray[np.int64]:
        """The documents that have rows, ascending."""
        return np.flatnonzero(self.document_rows)

    def document_of(self, rows: Ints) -> NDArray[np.int32]:
        return self.document[self.segment[rows]]

    def place(self, rows: Ints) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Context, and position in it, of rows."""
        segment = self.segment[rows]
        return self.context[segment], self.position[segment] + rows - self.starts[segment]

    def around(self, rows: Ints) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The window, first row and end, about each of ``rows``; at a segment's edge it is shifted, not cut."""
        low, high = self.starts[:-1][self.segment[rows]], self.starts[1:][self.segment[rows]]
        first = np.clip(rows - int(PEAK * self.window), low, np.maximum(low, high - self.window))
        return first, np.minimum(first + self.window, high)

    # --- the grid: every segment cut into windows of nearly equal length, numbered in order of their rows

    @cached_property
    def _grid(self) -> NDArray[np.int64]:
        """(segments + 1,) the first window of each."""
        return np.concatenate([[0], (-(-np.diff(self.starts) // self.window)).cumsum()])

    @property
    def windows(self) -> int:
        return int(self._grid[-1])

    def window_of(self, rows: Ints) -> NDArray[np.int64]:
        """The grid window that each row lies in."""
        segment = self.segment[rows]
        number = self._grid[segment + 1] - self._grid[segment]
        length = self.starts[segment + 1] - self.starts[segment]
        return self._grid[segment] + ((rows - self.starts[segment] + 1) * number - 1) // length

    def bounds(self, windows: Ints) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First row and end of grid windows. Example: 100 rows, windows of 32 -> 0–25, 25–50, 50–75, 75–100."""
        segment = np.searchsorted(self._grid, windows, side="right") - 1
        number = self._grid[segment + 1] - self._grid[segment]
        length, at = self.starts[segment + 1] - self.starts[segment], windows - self._grid[segment]
        return self.starts[segment] + at * length // number, self.starts[segment] + (at + 1) * length // number

    @cached_property
    def document_windows(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The first grid window, and the number of them, of each of ``documents``; a document's are consecutive."""
        number = np.bincount(self.document, np.diff(self._grid)).astype(np.int64)[self.documents]
        _, first = np.unique(self.document, return_index=True)
        return self._grid[first], number


def read_text(contexts: Contexts, work: Path, window: int) -> Text:
    """Read the stored contexts file by file, and leave what there is a number of for each row in files in ``work``."""
    shape = (contexts.meta["rows"],)
    token = np.lib.format.open_memmap(work / "token.npy", "w+", np.int32, shape)
    segment = np.lib.format.open_memmap(work / "segment.npy", "w+", np.int32, shape)
    total = max(end for _, end in contexts.meta["contexts"].values())
    size, parts, at, segments = contexts.meta["file_contexts"], [], 0, 0
    for first in range(0, total, size):
        tokens, documents = contexts.read(first, min(first + size, total))
        context, position = (documents >= 0).nonzero()
        document = documents[context, position]
        end = at + len(context)
        token[at:end] = tokens[context, position]
        broken = np.ones(len(context), bool)
        broken[1:] = (np.diff(context) != 0) | (np.diff(position) != 1) | (np.diff(document) != 0)
        segment[at:end] = segments + broken.cumsum() - 1
        parts.append((at + broken.nonzero()[0], first + context[broken], position[broken], document[broken]))
        at, segments = end, segments + int(broken.sum())
    starts, *rest = (np.concatenate(column) for column in zip(*parts, strict=True))
    context, position, document = (column.astype(np.int32) for column in rest)
    return Text(token, segment, np.append(starts, at), context, position, document, window)
