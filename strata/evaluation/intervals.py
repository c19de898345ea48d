"""A number and how far it might have been elsewhere. Which of the two it is, is said where it is used."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Measure = dict[str, float | None]  # value, low, high
DRAWS, AT_ONCE = 1000, 50
PERCENTILES = 2.5, 97.5


def over_seeds(values: Sequence[float]) -> Measure:
    """Their mean, the least and the most of them."""
    return {"value": float(np.mean(values)), "low": float(min(values)), "high": float(max(values))}


def resampled(value: float, drawn: NDArray[np.floating]) -> Measure:
    """``value``, and the middle 95 % of what it was on items ``drawn`` again, of those where it is a number; None where
    ``value`` is none."""
    if not np.isfinite(value):
        return dict.fromkeys(("value", "low", "high"))
    finite = drawn[np.isfinite(drawn)]
    low, high = np.percentile(finite, PERCENTILES) if len(finite) else (value, value)
    return {"value": float(value), "low": float(low), "high": float(high)}


def weights(items: int, random: np.random.Generator, draws: int = DRAWS) -> NDArray[np.int64]:
    """(draw, item) how often each item comes when as many are drawn with replacement: a bootstrap."""
    return random.multinomial(items, np.full(items, 1 / items), size=draws)


def drawn_means(values: NDArray[np.floating], random: np.random.Generator) -> NDArray[np.float64]:
    """(draw, column) the means of ``values`` (item, column) over items drawn again; a few draws are in memory."""
    parts = [weights(len(values), random, AT_ONCE) @ values for _ in range(DRAWS // AT_ONCE)]
    return np.concatenate(parts) / len(values)
