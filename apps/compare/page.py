"""Lay a comparison out as one self-contained file of HTML."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from apps.compare import words
from apps.compare.comparison import Comparison
from strata.comparison.paired import CHANCE, ERROR, Row
from strata.comparison.words import listed
from strata.pages.templates import environment

WIDTH, HEIGHT, MARGIN = 240, 34, 8  # of an interval's drawing, in its own units


@dataclass(frozen=True)
class Drawing:
    """Where an interval is drawn. To the right of ``zero`` A is better, whatever the metric.

    ``low`` and ``high`` are None where there is no interval. ``dots``: the differences of the seeds.
    """

    zero: float
    middle: float
    low: float | None
    high: float | None
    dots: Sequence[float]


def render(comparison: Comparison) -> str:
    """Return the page."""
    templates = environment(Path(__file__).parent, signed=words.signed, title=words.title, more=words.more)
    rows = comparison.rows
    return templates.get_template("compare.html.j2").render(
        comparison=comparison,
        verdict=comparison.verdict,
        drawings=[drawing(row) for row in rows],
        verdicts=words.VERDICTS,
        undecided=[row for row in rows if row.verdict == "undecided"],
        single=any(row.p is None for row in rows),
        paired=any(row.paired for row in rows),
        items=listed(list(dict.fromkeys(row.items for row in rows if row.items)) or [""]),
        width=WIDTH,
        height=HEIGHT,
        error=round(100 * ERROR),
        chance=round(100 * CHANCE),
    )


def drawing(row: Row) -> Drawing:
    """Scale an interval, and the seeds' differences, to the width of a drawing with 0 in its middle."""
    sign = -1 if row.lower else 1
    bounds = [bound for bound in (row.low, row.high) if bound is not None]
    largest = max(abs(value) for value in (*bounds, *row.by_seed, row.difference)) or 1.0

    def place(value: float) -> float:
        return round(WIDTH / 2 + sign * value / largest * (WIDTH / 2 - MARGIN), 2)

    ends = sorted(place(bound) for bound in bounds)
    low, high = ends if ends else (None, None)
    return Drawing(WIDTH / 2, place(row.difference), low, high, [place(value) for value in row.by_seed])
