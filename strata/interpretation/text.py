"""The text under the activations: token, document and context of every row, and windows of text around rows.

A *segment* is a run of rows whose tokens stand side by side in one context and belong to one document. A window lies
within a segment. So a window is a range of rows, and its text is unbroken.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strata.rows.shards import Contexts

PEAK = 0.75  # where in a window its peak stands: a model reads what comes before a token, not what follows it
Ints = NDArray[Any]


@dataclass(frozen=True)
class Text:
    """The tokens of all rows and their segments.

    ``token``, ``segment``: (rows,) int32, memory-mapped. ``starts``: (segments + 1,) the first row of each segment.
    ``context``, ``position`` (in the context, of the first row) and ``document``: (segments,).
    ``window``: how many tokens a window has. A segment takes 20 bytes of memory; a context has one or a few segments.
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
        """How many rows there are."""
        return int(self.starts[-1])

    @cached_property
    def document_rows(self) -> NDArray[np.int64]:
        """(largest document with rows + 1,) how many rows each document of the corpus has; 0 for one without."""
        return np.bincount(self.document, np.diff(self.starts)).astype(np.int64)

    @cached_property
    def documents(self) -> NDArray[np.int64]:
        """The documents that have rows, ascending."""
        return np.flatnonzero(self.document_rows)

    def document_of(self, rows: Ints) -> NDArray[np.int32]:
        """Return the document of each of ``rows``."""
        return self.document[self.segment[rows]]

    def place(self, rows: Ints) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Return the context of each of ``rows``, and its position in the context."""
        segment = self.segment[rows]
        return self.context[segment], self.position[segment] + rows - self.starts[segment]

    def around(self, rows: Ints) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the first row and the end of the window around each of ``rows``.

        At the edge of a segment a window is shifted, not cut; it is shorter only if its whole segment is.
        """
        low, high = self.starts[:-1][self.segment[rows]], self.starts[1:][self.segment[rows]]
        first = np.clip(rows - int(PEAK * self.window), low, np.maximum(low, high - self.window))
        return first, np.minimum(first + self.window, high)

    # --- the grid: every segment is cut into windows of nearly equal length, numbered in order of their rows

    @cached_property
    def _grid(self) -> NDArray[np.int64]:
        """(segments + 1,) the first window of each segment."""
        return np.concatenate([[0], (-(-np.diff(self.starts) // self.window)).cumsum()])

    @property
    def windows(self) -> int:
        """How many windows the grid has."""
        return int(self._grid[-1])

    def window_of(self, rows: Ints) -> NDArray[np.int64]:
        """Return the grid window that each of ``rows`` lies in."""
        segment = self.segment[rows]
        number = self._grid[segment + 1] - self._grid[segment]
        length = self.starts[segment + 1] - self.starts[segment]
        return self._grid[segment] + ((rows - self.starts[segment] + 1) * number - 1) // length

    def bounds(self, windows: Ints) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the first row and the end of grid windows. 100 rows, windows of 32 -> 0–25, 25–50, 50–75, 75–100."""
        segment = np.searchsorted(self._grid, windows, side="right") - 1
        number = self._grid[segment + 1] - self._grid[segment]
        length = self.starts[segment + 1] - self.starts[segment]

        at = windows - self._grid[segment]  # which window of its segment
        return self.starts[segment] + at * length // number, self.starts[segment] + (at + 1) * length // number

    @cached_property
    def document_windows(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The first grid window of each of ``documents``, and how many it has; they are consecutive."""
        number = np.bincount(self.document, np.diff(self._grid)).astype(np.int64)[self.documents]
        _, first = np.unique(self.document, return_index=True)
        return self._grid[first], number


def read_text(contexts: Contexts, work: Path, window: int) -> Text:
    """Read the stored contexts, one file at a time. ``window``: how many tokens a window has.

    The two arrays with a number for each row, token and segment, are written to files in ``work``, not held in memory.
    """
    shape = (contexts.meta["rows"],)
    token = np.lib.format.open_memmap(work / "token.npy", "w+", np.int32, shape)
    segment = np.lib.format.open_memmap(work / "segment.npy", "w+", np.int32, shape)

    file_contexts = contexts.meta["file_contexts"]
    total = max(end for _, end in contexts.meta["contexts"].values())  # of each split: its first context, and its end
    parts = []  # of each file: first row, context, position and document of its segments
    rows, segments = 0, 0  # read so far
    for first in range(0, total, file_contexts):
        # A place of a context that is no row, such as BOS, has document -1.
        tokens, documents = contexts.read(first, min(first + file_contexts, total))
        context, position = (documents >= 0).nonzero()
        document = documents[context, position]
        end = rows + len(context)
        token[rows:end] = tokens[context, position]

        # A segment begins where the row does not follow the row before in its context and document.
        begins = np.ones(len(context), bool)
        begins[1:] = (np.diff(context) != 0) | (np.diff(position) != 1) | (np.diff(document) != 0)
        segment[rows:end] = segments + begins.cumsum() - 1
        parts.append((rows + begins.nonzero()[0], first + context[begins], position[begins], document[begins]))
        rows, segments = end, segments + int(begins.sum())

    starts, *segment_columns = (np.concatenate(column) for column in zip(*parts, strict=True))
    context, position, document = (column.astype(np.int32) for column in segment_columns)
    return Text(token, segment, np.append(starts, rows), context, position, document, window)
