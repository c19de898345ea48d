"""Put a comparison into sentences."""

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


def more(row: Row) -> str:
    """Say how many more seeds or documents would decide; "" where there is a verdict."""
    if row.verdict != "undecided":
        return ""
    if row.p is None:
        return "needs two seeds or more on each side"
    if not row.difference:
        return "A and B have the same number"
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
