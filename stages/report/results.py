"""Read the numbers that the stages after train left in `reports/<stage>/<L>.json`."""

from pathlib import Path
from typing import Any

from stages.train.read import Measured, Record
from strata.run.files import read_json
from strata.run.params import check

Numbers = dict[str, Any]  # what a stage measured of one layer, nested


def read_numbers(path: Path) -> Numbers | None:
    """Read `reports/<stage>/<L>.json`: its numbers, nested. Return None if the stage was skipped."""
    numbers = read_json(path)
    return None if numbers.get("skipped") else numbers


class Point(Record):
    """One dictionary on a line of merge's curve. ``line``: merged, dropped or refitted."""

    line: str
    latents: int
    fvu: float


class Group(Record):
    """A merged latent, and the latents that it is made of."""

    merged: int
    latents: list[int]


class Merged(Record):
    """What merging did to a layer's dictionary.

    ``ce_tokens``: how many test tokens the metrics of cross-entropy are of. ``test``: the metrics before and after, and
    those of the two baselines, dropped and refitted.
    """

    layer: int
    living: int
    merged: int
    alone: int
    largest: int
    dropped: int
    groups: list[Group]
    ce_tokens: int
    test: dict[str, Measured]
    curve: list[Point]

    def numbers(self) -> Numbers:
        """Return what the summary says of the merge. ``before`` is left out: train's numbers are the same."""
        counts = {"latents": self.merged, "alone": self.alone, "largest": self.largest, "dropped": self.dropped}
        return {"test": {name: self.test[name] for name in ("after", "dropped", "refitted")}, "groups": counts}


def read_merged(path: Path) -> Merged | None:
    """Read `reports/merge/<L>.json`. Return None if the stage was skipped."""
    numbers = read_numbers(path)
    return None if numbers is None else check(numbers, Merged, str(path))
