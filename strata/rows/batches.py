"""Stored rows -> shuffled batches, in memory that does not depend on how many rows there are.

An epoch visits chunks of neighbouring rows in a random order, gathers as many as fit a window, and shuffles the rows
of the window. With a window as large as the data that is a perfect shuffle. Each row comes at most once an epoch: what
does not fill a last batch of a window is left out, other rows each time. Which rows a step sees is a function of the
seed and the step alone, so that training can go on anywhere.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from strata.device.machine import put
from strata.rows.spread import FAR, check_norms, far, spread
from strata.run.door import BadInput

CHUNK = 256  # rows read together: 0.3 MB at width 640


class Rows(Protocol):
    """One layer's activations, as extract's reader opens them; ``scale``, ``mean``, ``median_norm`` of the training
    rows."""

    @property
    def layer(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def scale(self) -> float: ...
    @property
    def mean(self) -> Tensor: ...
    @property
    def median_norm(self) -> float: ...
    def split(self, name: str) -> tuple[int, int]:
        """First row of train, validation or test, and the row after its last."""
        ...

    def read(self, first: int, end: int) -> Tensor:
        """Rows first … end-1, (row, width) in bfloat16."""
        ...

    def blocks(self, first: int, end: int, rows: int = 4096) -> Iterator[Tensor]:
        """The same in order, in blocks of ``rows``."""
        ...


@dataclass(frozen=True)
class Shuffled:
    """The rows first … end-1 of some activations in shuffled batches of ``batch`` rows."""

    activations: Rows
    first: int
    end: int
    batch: int
    window: int
    seed: int

    def __post_init__(self) -> None:
        if self.batch > self.end - self.first:
            raise BadInput(
                f"params.yaml: train.batch_size is {self.batch}, but there are {self.end - self.first} training rows; "
                "lower it, or extract more tokens"
            )

    def steps_per_epoch(self) -> int:
        """Whole batches of an epoch; the same in every epoch."""
        rows = self.end - self.first
        full, rest = divmod(rows, self._window_rows)
        return full * (self._window_rows // self.batch) + rest // self.batch

    @property
    def _window_rows(self) -> int:
        """A whole number of batches and chunks, so that no window but the last leaves rows out."""
        unit = int(np.lcm(self.batch, CHUNK))
        return max(self.window // unit, 1) * unit

    def epoch(self, number: int, skip: int = 0) -> Iterator[Tensor]:
        """Batches (row, width) in bfloat16 of epoch ``number``, without the first ``skip``, which are not read."""
        random = np.random.default_rng([self.seed, number])
        rows = self.end - self.first
        chunks = random.permutation(-(-rows // CHUNK))
        short = chunks == len(chunks) - 1  # the last chunk may be short: it goes to the end, so that windows stay full
        chunks = np.concatenate([chunks[~short], chunks[short]])
        step = self._window_rows // CHUNK
        for start in range(0, len(chunks), step):
            spans = [self._span(int(chunk)) for chunk in chunks[start : start + step]]
            size = sum(end - first for first, end in spans)
            order = torch.from_numpy(random.permutation(size))
            batches = size // self.batch
            if skip < batches:
                window = torch.cat([self.activations.read(*span) for span in spans])
                for at in range(skip * self.batch, batches * self.batch, self.batch):
                    yield window.index_select(0, order[at : at + self.batch])
            skip = max(0, skip - batches)

    def _span(self, chunk: int) -> tuple[int, int]:
        first = self.first + chunk * CHUNK
        return first, min(first + CHUNK, self.end)

    def endless(self, step: int = 0) -> Iterator[Tensor]:
        """One epoch after another, from ``step`` on."""
        number, skip = divmod(step, self.steps_per_epoch())
        while True:
            yield from self.epoch(number, skip)
            number, skip = number + 1, 0


def blocks(activations: Rows, first: int, end: int, device: torch.device) -> Iterator[Tensor]:
    """Rows first … end-1 in order, in blocks on ``device``."""
    return (put(block, device) for block in activations.blocks(first, end))


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
