"""Shuffle stored rows into batches, in memory that does not depend on how many rows there are.

An epoch visits chunks of neighbouring rows in a random order, gathers as many as fit a window, and shuffles the rows
of the window. A window as large as the data gives a perfect shuffle. Each row comes at most once an epoch. Rows that do
not fill the last batch of a window are left out; these are other rows in each epoch. Which rows a step sees depends on
the seed and the step alone, so that training can go on from any step.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from strata.device.machine import put
from strata.rows.spread import FAR, SAME, check_norms, far, spread
from strata.run.door import BadInput

CHUNK = 256  # rows read together: 0.3 MB at width 640


class Rows(Protocol):
    """One layer's activations, as extract's reader opens them.

    ``scale``, ``mean`` (width,) and ``median_norm`` are those of the training rows.
    """

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
        """Return the first row of train, validation or test, and the row after its last."""
        ...

    def read(self, first: int, end: int) -> Tensor:
        """Return the rows ``first`` to ``end`` - 1, (row, width) in bfloat16."""
        ...

    def blocks(self, first: int, end: int, rows: int = 4096) -> Iterator[Tensor]:
        """Yield the rows ``first`` to ``end`` - 1 in order, in blocks of ``rows``."""
        ...


def check_held_out(rows: Rows, split: str) -> None:
    """Raise BadInput if the rows of a ``split``, validation or test, do not vary: then an fvu would mean nothing."""
    total, squares, count = torch.zeros(rows.width, dtype=torch.float64), 0.0, 0  # Σx, Σ‖x‖², number of rows
    for block in rows.blocks(*rows.split(split)):
        x = block.double()
        total += x.sum(0)
        squares += float(x.square().sum())
        count += len(x)
        if squares - float(total.square().sum()) / max(count, 1) > SAME * squares:
            return
    has = f"has {count} row{'s' * (count != 1)}"
    reason = "and one alone does not vary" if count == 1 else "all the same" if count else "and needs two"
    raise BadInput(
        f"the {split} split {has}, {reason}: there is no variance of which an SAE could explain a share; bring more "
        f"documents, or raise fetch.corpus.{split}"
    )


@dataclass(frozen=True)
class Shuffled:
    """The rows ``first`` to ``end`` - 1 of some activations, in shuffled batches of ``batch`` rows.

    ``window``: about how many rows are in memory and shuffled together. Raises BadInput where there are fewer rows than
    a batch has.
    """

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
        """Return the number of batches in an epoch, which is the same in every epoch."""
        rows = self.end - self.first
        full, rest = divmod(rows, self._window_rows)
        return full * (self._window_rows // self.batch) + rest // self.batch

    @property
    def _window_rows(self) -> int:
        """Rows of a window: a whole number of batches and of chunks, so that only the last window leaves rows out."""
        unit = int(np.lcm(self.batch, CHUNK))
        return max(self.window // unit, 1) * unit

    def epoch(self, number: int, skip: int = 0) -> Iterator[Tensor]:
        """Yield the batches of epoch ``number``, (row, width) in bfloat16, without the first ``skip`` of them.

        Windows that are skipped as a whole are not read.
        """
        random = np.random.default_rng([self.seed, number])
        rows = self.end - self.first

        # The last chunk may be short. It goes to the end, so that all windows but the last are full.
        chunks = random.permutation(-(-rows // CHUNK))
        is_last = chunks == len(chunks) - 1
        chunks = np.concatenate([chunks[~is_last], chunks[is_last]])

        chunks_per_window = self._window_rows // CHUNK
        for start in range(0, len(chunks), chunks_per_window):
            spans = [self._span(int(chunk)) for chunk in chunks[start : start + chunks_per_window]]
            size = sum(end - first for first, end in spans)
            order = torch.from_numpy(random.permutation(size))  # drawn for skipped windows, too: later ones follow it
            batches = size // self.batch
            if skip < batches:
                window = torch.cat([self.activations.read(*span) for span in spans])
                for batch_start in range(skip * self.batch, batches * self.batch, self.batch):
                    yield window.index_select(0, order[batch_start : batch_start + self.batch])
            skip = max(0, skip - batches)

    def _span(self, chunk: int) -> tuple[int, int]:
        """Return the first row of a chunk, and the row after its last."""
        first = self.first + chunk * CHUNK
        return first, min(first + CHUNK, self.end)

    def endless(self, step: int = 0) -> Iterator[Tensor]:
        """Yield the batches of one epoch after another, from ``step`` on."""
        number, skip = divmod(step, self.steps_per_epoch())
        while True:
            yield from self.epoch(number, skip)
            number, skip = number + 1, 0


def shortened(x: Tensor, longest: float) -> Tensor:
    """Return ``x`` (row, width) in float32, where rows of a norm above ``longest`` have that norm and their direction.

    A few rows of a layer may hold a third of its variance, so that their squared error outweighs that of thousands of
    others. Shortened, their direction is still learnt, and codes of longer rows follow from it.
    """
    x = x.float()
    return x * (longest / x.norm(dim=1, keepdim=True)).clamp(max=1)


def blocks(activations: Rows, first: int, end: int, device: torch.device) -> Iterator[Tensor]:
    """Yield the rows ``first`` to ``end`` - 1 in order, in blocks on ``device``."""
    return (put(block, device) for block in activations.blocks(first, end))


@dataclass(frozen=True)
class InMemory:
    """Activations ``x`` (row, width) in memory. ``splits``: first row and end of train, validation and test.

    ``scale``, ``mean`` (width,) and ``median_norm`` are those of the training rows.
    """

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
    """Measure what training needs to know about the rows ``x`` (row, width) float32.

    ``splits``: first row and end of train, validation and test. Raises BadInput where nothing can be learnt from the
    rows. The message calls them ``what``, and one of them ``name(row)``.
    """
    # All rows are checked, also those that are not trained on.
    norms = x.double().norm(dim=1).numpy()
    largest, largest_name = float(norms.max(initial=0)), name(int(norms.argmax())) if len(norms) else ""
    median = check_norms(norms, largest, what, lambda: largest_name)
    if largest > FAR * median:
        sys.stderr.write(f"train: {far(largest, median, what, largest_name)}\n")

    first, end = splits["train"]
    train_spread = spread(lambda: [x[first:end]], what, lambda row: name(first + row))
    return InMemory(x, splits, train_spread.scale, train_spread.mean.float(), train_spread.median_norm)
