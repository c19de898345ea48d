"""Put a comparison into sentences."""

import re

from strata.comparison.paired import MOST, Row
from strata.pages.readable import number

TITLES = {  # end of a metric's name -> what it says
    r"fvu_inlier": "variance missed",
    r"l0": "active latents a row",
    r"dead": "share of latents that never fire",
    r"delta_ce": "what predictions cost, in nats",
    r"probing\.sae\.1": "accuracy of a probe of one latent",
    r"probing\.sae\.5": "accuracy of a probe of five latents",
    r"last\.sae\.auc\.1": "AUC of one latent at the last token, mean over tasks",
    r"last\.sae\.auc\.5": "AUC of five latents at the last token, mean over tasks",
    r"mean\.sae\.auc\.1": "AUC of one latent's mean over tokens, mean over tasks",
    r"mean\.sae\.auc\.5": "AUC of five latents' means over tokens, mean over tasks",
    r"stability\.\d+\.again": "share of latents that come again with another seed",
    r"absorption\.absorbed": "share of parents that a child has absorbed",
    r"letters\.absorbed": "share of words whose latent has absorbed that of their first letter",
    r"balanced_accuracy\.difference": "how far explanations are above chance",
}
VERDICTS = {"better": "A is better", "worse": "B is better", "undecided": "undecided"}


def title(metric: str) -> str:
    """Say in words what a metric is; "" where its name has to do."""
    return next((words for end, words in TITLES.items() if re.search(rf"(^|\.){end}$", metric)), "")


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
    return (" and " if row.together else " or ").join(ways) or f"more than {number(MOST)} seeds: as good as equal"


def interval(row: Row) -> str:
    """Write the difference and its interval."""
    if row.low is None or row.high is None:
        return f"{signed(row.difference)}"
    return f"{signed(row.difference)} ({signed(row.low)} to {signed(row.high)})"


def signed(value: float) -> str:
    """Write a number with its sign: +0.012, −0.3, 0."""
    return "0" if value == 0 else f"{'+' if value > 0 else '−'}{number(abs(value))}"
