"""What the two sides of the training benchmark have in common."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

BATCH = 4096  # rows of a step
WARM_UP = 1  # steps; one more goes into finding the length of a piece


@dataclass(frozen=True)
class Setting:
    """A row of the table. ``l0``: active latents a token. ``dead``: the latents that AuxK is to revive.

    SAELens has no AuxK for jumprelu and relu; ours has it for every rule.
    """

    rule: str
    latents: int
    l0: int
    dead: list[int]


class Timed(NamedTuple):
    """How long some steps took, and the mean l0 of their batches."""

    seconds: float
    l0: float


Advance = Callable[[int], Timed]  # takes so many steps


def pace(advance: Advance, seconds: float) -> int:
    """How many steps take about so many seconds."""
    return max(1, round(seconds / advance(1).seconds))


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)
