"""Say in words which of two groups is better."""

from collections.abc import Sequence

from strata.comparison.paired import Row


def verdict(rows: Sequence[Row], remedy: str) -> str:
    """Say in one or two sentences whether A or B is better, and in what. ``remedy``: what to do about a single seed."""
    if any(row.p is None for row in rows):
        return f"Undecided: one seed decides nothing. {remedy}"
    better, worse = ([row.metric for row in rows if row.verdict == word] for word in ("better", "worse"))
    if better and worse:
        return f"A trade: A is better in {listed(better)}, B in {listed(worse)}."
    if better or worse:
        name, other, metrics = ("A", "B", better) if better else ("B", "A", worse)
        return f"{name} is better than {other} in {listed(metrics)}."
    return "Undecided: in no metric is the difference larger than what chance makes of it."


def remedy(a: int, b: int, how: str) -> str:
    """Say which side to train again, so that there are two seeds on each, and how. ``a``, ``b``: their seeds."""
    lacking = [name for name, seeds in (("A", a), ("B", b)) if seeds < 2]
    return f"Train {listed(lacking)} again {how}." if lacking else ""


def listed(words: Sequence[str], most: int = 5) -> str:
    """Join words: "x", "x and y", "x, y and z". Of more than ``most`` the last ones are counted."""
    if len(words) > most:
        words = [*words[: most - 1], f"{len(words) - most + 1} more"]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
