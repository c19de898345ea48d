"""Put a comparison into sentences."""

from collections.abc import Sequence

from apps.compare.comparison import Comparison
from strata.comparison.paired import MOST, Row
from strata.pages.readable import number

TITLES = {  # last part of a metric's name -> what it says
    "fvu_inlier": "variance missed",
    "l0": "active latents a row",
    "dead": "share of latents that never fire",
    "delta_ce": "what predictions cost, in nats",
}
VERDICTS = {"better": "A is better", "worse": "B is better", "undecided": "undecided"}


def title(metric: str) -> str:
    """Say in words what a metric is; "" where its name has to do."""
    return TITLES.get(metric.rpartition(".")[2], "")


def verdict(comparison: Comparison) -> str:
    """Say in one or two sentences which is better, and in what."""
    rows = comparison.rows
    if any(row.p is None for row in rows):
        return f"Undecided: one seed decides nothing. {comparison.remedy}"
    better, worse = ([row.metric for row in rows if row.verdict == word] for word in ("better", "worse"))
    if better and worse:
        return f"A trade: A is better in {listed(better)}, B in {listed(worse)}."
    if better or worse:
        name, other, metrics = ("A", "B", better) if better else ("B", "A", worse)
        return f"{name} is better than {other} in {listed(metrics)}."
    return "Undecided: in no metric is the difference larger than what seeds and documents do by chance."


def train(a: int, b: int, how: str) -> str:
    """Say which side to train again, so that there are two seeds on each, and how. ``a``, ``b``: their seeds."""
    lacking = [name for name, seeds in (("A", a), ("B", b)) if seeds < 2]
    return f"Train {listed(lacking)} again {how}." if lacking else ""


def listed(words: Sequence[str]) -> str:
    """Join words: "x", "x and y", "x, y and z"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def more(row: Row) -> str:
    """Say how many more seeds or documents would decide; "" where there is a verdict."""
    if row.verdict != "undecided":
        return ""
    if row.p is None:
        return "needs two seeds or more on each side"
    if not row.difference:
        return "the same number"
    ways = []
    if row.more_seeds is not None:
        ways.append(f"{number(row.more_seeds)} more seed{'s' * (row.more_seeds != 1)} on each side")
    if row.more_items is not None and row.items:
        ways.append(f"{number(row.more_items)} more {row.items}")
    return " or ".join(ways) or f"more than {number(MOST)} seeds: as good as equal"


def interval(row: Row) -> str:
    """Write the difference and its interval."""
    if row.low is None or row.high is None:
        return f"{signed(row.difference)}"
    return f"{signed(row.difference)} ({signed(row.low)} to {signed(row.high)})"


def signed(value: float) -> str:
    """Write a number with its sign: +0.012, −0.3, 0."""
    return "0" if value == 0 else f"{'+' if value > 0 else '−'}{number(abs(value))}"
