"""Rows drawn from a truth, as training reads them. Any of them can be drawn again, so that none has to be kept."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from strata.rows.batches import CHUNK, InMemory, in_memory
from strata.rows.spread import Spread, spread
from strata.run.door import BadInput
from strata.sae.engine.pattern import Pattern
from strata.sae.sae import Codes
from strata.synthetic.truth import Truth


class Labelled(NamedTuple):
    """Rows ``x`` (row, width), and their true ``activations``: codes whose latents are the true features."""

    x: Tensor
    activations: Codes


@dataclass(frozen=True)
class Drawn:
    """Rows of a ``truth``, numbered from 0; they fulfil :class:`strata.rows.batches.Rows`.

    CHUNK neighbouring rows are drawn together, from a generator that ``seed`` and their place fix. So a row does not
    depend on which rows are read with it. ``splits``: first row and end of train, validation and test.
    """

    truth: Truth
    seed: int
    splits: Mapping[str, tuple[int, int]]
    layer: int = 0

    @property
    def width(self) -> int:
        return self.truth.width

    def split(self, name: str) -> tuple[int, int]:
        return self.splits[name]

    @cached_property
    def _spread(self) -> Spread:
        """Of the training rows, which are drawn once to measure it."""
        return spread(lambda: self.blocks(*self.split("train")), "rows")

    @property
    def scale(self) -> float:
        return self._spread.scale

    @property
    def mean(self) -> Tensor:
        return self._spread.mean.float()

    @property
    def median_norm(self) -> float:
        return self._spread.median_norm

    def labelled(self, first: int, end: int) -> Iterator[Labelled]:
        """Yield the rows ``first`` to ``end`` - 1 in order, at most CHUNK at a time, with their true activations."""
        for number in range(first // CHUNK, -(-end // CHUNK)):
            start = number * CHUNK
            x, activations = self._chunk(number)
            low, high = max(first - start, 0), min(end - start, CHUNK)
            yield Labelled(x[low:high], part(activations, low, high))

    def _chunk(self, number: int) -> Labelled:
        """Draw one chunk."""
        seed = np.random.SeedSequence([self.seed, number]).generate_state(1, np.uint64)
        activations = self.truth.sample(CHUNK, torch.Generator().manual_seed(int(seed[0])))
        return Labelled(self.truth.rows(activations), activations)

    def read(self, first: int, end: int) -> Tensor:
        """Return the rows ``first`` to ``end`` - 1, (row, width) in float32."""
        return torch.cat([x for x, _ in self.labelled(first, end)])

    def blocks(self, first: int, end: int, rows: int = 4096) -> Iterator[Tensor]:
        """Yield the rows ``first`` to ``end`` - 1 in order, in blocks of ``rows``."""
        return (self.read(start, min(start + rows, end)) for start in range(first, end, rows))

    def kept(self) -> InMemory:
        """Draw all rows once and keep them in memory, for a training that reads them many times."""
        end = max(end for _, end in self.splits.values())
        x = torch.empty(end, self.width)
        for start in range(0, end, CHUNK):
            x[start : start + CHUNK] = self.read(start, min(start + CHUNK, end))
        return in_memory(x, self.splits)


def part(codes: Codes, first: int, end: int) -> Codes:
    """Return the codes of the rows ``first`` to ``end`` - 1."""
    pattern = codes.pattern
    starts = pattern.starts[first : end + 1]
    inside = slice(int(starts[0]), int(starts[-1]))
    return Codes(codes.values[inside], Pattern(starts - starts[0], pattern.latents[inside], pattern.width))


def drawn(truth: Truth, train: int, validation: int, test: int, seed: int) -> Drawn:
    """Number so many rows of ``truth`` for training, validation and test. Raises BadInput where one of them is none."""
    for name, rows in {"train": train, "validation": validation, "test": test}.items():
        if rows < 1:
            raise BadInput(f"{name} is {rows}; each split needs at least one row")
    validation_end = train + validation
    splits = {"train": (0, train), "validation": (train, validation_end)}
    return Drawn(truth, seed, {**splits, "test": (validation_end, validation_end + test)})
