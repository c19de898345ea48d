"""What was compared, and what came of it."""

from collections.abc import Sequence
from dataclasses import dataclass

from strata.comparison.paired import Row


@dataclass(frozen=True)
class Comparison:
    """Two groups, and a row for each metric.

    ``a`` and ``b``: their names. ``members_a`` and ``members_b``: the experiments or folders that they consist of.
    ``again``: how one more seed is trained, after "train B again". ``scope``: what the numbers were measured on.
    ``notes``: what could not be compared or checked.
    """

    a: str
    b: str
    members_a: Sequence[str]
    members_b: Sequence[str]
    again: str
    scope: str
    notes: Sequence[str]
    rows: Sequence[Row]
