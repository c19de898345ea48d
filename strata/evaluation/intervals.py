"""Give a number an interval: over seeds, or over items drawn again. The place that uses it says which."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Measure = dict[str, float | None]  # value, low, high
DRAWS, AT_ONCE = 1000, 50
PERCENTILES = 2.5, 97.5


def over_seeds(values: Sequence[float]) -> Measure:
    """Summarise ``values``, one for each seed: their mean, the least and the most of them."""
    return {"value": float(np.mean(values)), "low": float(min(values)), "high": float(max(values))}


def resampled(value: float, drawn: NDArray[np.floating]) -> Measure:
    """Give ``value`` the interval that holds the middle 95 % of ``drawn`` (draw,), its values on items drawn again.

    Draws in which it is not a finite number do not count. All three are None where ``value`` itself is not finite.
    """
    if not np.isfinite(value):
        return dict.fromkeys(("value", "low", "high"))
    finite = drawn[np.isfinite(drawn)]
    low, high = np.percentile(finite, PERCENTILES) if len(finite) else (value, value)
    return {"value": float(value), "low": float(low), "high": float(high)}


def weights(items: int, random: np.random.Generator, draws: int = DRAWS) -> NDArray[np.int64]:
    """Draw a bootstrap: how often each item comes when as many are drawn with replacement, (draw, item)."""
    return random.multinomial(items, np.full(items, 1 / items), size=draws)


def drawn_means(values: NDArray[np.floating], random: np.random.Generator) -> NDArray[np.float64]:
    """Average ``values`` (item, column) over items drawn again, DRAWS times: (draw, column).

    Only AT_ONCE draws are in memory at a time.
    """
    parts = [weights(len(values), random, AT_ONCE) @ values for _ in range(DRAWS // AT_ONCE)]
    return np.concatenate(parts) / len(values)


def drawn_over_both(values: NDArray[np.floating], random: np.random.Generator) -> NDArray[np.float64]:
    """Average ``values`` (seed, item, column) over items and seeds, both drawn again, DRAWS times: (draw, column).

    Seeds and items are crossed: a draw takes the same items of all its seeds. With one seed it is drawn_means.
    """
    seeds, items, _ = values.shape
    parts = []
    for _ in range(DRAWS // AT_ONCE):
        of_items = weights(items, random, AT_ONCE)
        of_seeds = weights(seeds, random, AT_ONCE)
        parts.append(np.einsum("ds,di,sic->dc", of_seeds, of_items, values))
    return np.concatenate(parts) / (seeds * items)
