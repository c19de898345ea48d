"""Rows that are held in memory, as `stages.batches.Rows`."""

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from stages.spread import FAR, check_norms, far, spread


@dataclass(frozen=True)
class InMemory:
    """``x``: (row, width). ``scale``, ``mean`` and ``median_norm`` are those of the training rows."""

    x: Tensor
    splits: Mapping[str, tuple[int, int]]
    scale: float
    mean: Tensor
    median_norm: float
    layer: int = 0

    @property
    def width(self) -> int:
        return self.x.shape[1]

    def split(self, name: str) -> tuple[int, int]:
        return self.splits[name]

    def read(self, first: int, end: int) -> Tensor:
        return self.x[first:end]

    def blocks(self, first: int, end: int, rows: int = 4096) -> Iterator[Tensor]:
        return (self.x[start : min(start + rows, end)] for start in range(first, end, rows))


def in_memory(
    x: Tensor,
    splits: Mapping[str, tuple[int, int]],
    what: str = "rows",
    name: Callable[[int], str] = lambda row: f"row {row}",
) -> InMemory:
    """Find out what training needs to know of the rows ``x`` (row, width) float32; ``splits``: first row and end of
    train, validation and test. Raises BadInput where nothing can be learnt from them, in a sentence that calls them
    ``what``, and one of them ``name(row)``."""
    norms = x.double().norm(dim=1).numpy()
    largest, where = float(norms.max(initial=0)), name(int(norms.argmax())) if len(norms) else ""
    median = check_norms(norms, largest, what, lambda: where)
    if largest > FAR * median:
        sys.stderr.write(f"train: {far(largest, median, what, where)}\n")
    first, end = splits["train"]
    found = spread(lambda: [x[first:end]], what, lambda row: name(first + row))
    return InMemory(x, splits, found.scale, found.mean.float(), found.median_norm)
