"""What was compared, and what came of it."""

from collections.abc import Sequence
from dataclasses import dataclass

from strata.comparison import words
from strata.comparison.paired import Row


@dataclass(frozen=True)
class Comparison:
    """Two groups, and a row for each metric.

    ``a`` and ``b``: their names. ``members_a`` and ``members_b``: the experiments or folders that they consist of.
    ``remedy``: what to do where a side has one seed. ``scope``: what the numbers were measured on.
    ``notes``: what could not be compared or checked.
    """

    a: str
    b: str
    members_a: Sequence[str]
    members_b: Sequence[str]
    remedy: str
    scope: str
    notes: Sequence[str]
    rows: Sequence[Row]

    @property
    def verdict(self) -> str:
        """One or two sentences."""
        return words.verdict(self.rows, self.remedy)
