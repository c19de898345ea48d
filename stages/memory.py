"""Rows that are held in memory, as `stages.batches.Rows`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.door import BadInput


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


def in_memory(x: Tensor, splits: Mapping[str, tuple[int, int]]) -> InMemory:
    """Find out what training needs to know of the rows ``x`` (row, width) float32; ``splits``: first row and end of
    train, validation and test. Raises BadInput where all training rows are zero."""
    first, end = splits["train"]
    squares = float(x[first:end].double().square().sum(1).mean())
    if not squares:
        raise BadInput("every vector is zero")
    mean = x[first:end].mean(0, dtype=torch.float64).float()
    return InMemory(x, splits, (x.shape[1] / squares) ** 0.5, mean, float(x[first:end].norm(dim=1).median()))
