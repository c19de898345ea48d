"""What comes of the doses: the best effect that costs no more than a bound, and whether it beats the baselines'."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

Floats = NDArray[np.float64]
INTERVAL = (2.5, 97.5)  # percentiles of the bootstrap


def best(effect: Floats, cost: Floats, bound: float) -> int | None:
    """The strength with the largest mean effect whose mean cost is at most ``bound``; None where no effect is above 0:
    not steering, which costs nothing, is better then. ``effect``, ``cost``: (strength, prompt)."""
    means = np.where(cost.mean(1) <= bound, effect.mean(1), -np.inf)
    at = int(means.argmax())
    return at if means[at] > 0 else None


def compared(
    own: Floats, own_cost: Floats, other: Floats, other_cost: Floats, bound: float, draws: NDArray[np.int64]
) -> dict[str, Any]:
    """How much better the latent's best effect is than a baseline's, with an interval over prompts drawn again.

    ``draws``: (draw, prompt) as :func:`drawn` makes them. Each draw chooses the best strengths anew.
    """

    def gain(prompts: Any) -> float:
        pairs = ((own, own_cost), (other, other_cost))
        first, second = (_best_effect(effect[:, prompts], cost[:, prompts], bound) for effect, cost in pairs)
        return first - second

    low, high = np.percentile([gain(draw) for draw in draws], INTERVAL)
    return {"difference": gain(slice(None)), "low": float(low), "high": float(high), "beats": bool(low > 0)}


def _best_effect(effect: Floats, cost: Floats, bound: float) -> float:
    at = best(effect, cost, bound)
    return 0.0 if at is None else float(effect[at].mean())


def drawn(prompts: int, number: int, random: np.random.Generator) -> NDArray[np.int64]:
    """(draw, prompt): ``number`` draws of as many prompts as there are, with replacement."""
    return random.integers(prompts, size=(number, prompts))


def monotone(strengths: list[float], effect: Floats) -> float | None:
    """Spearman's correlation of strength and mean effect; None where one of them does not vary."""
    means = effect.mean(1)
    if len(set(strengths)) < 2 or np.ptp(means) == 0:
        return None
    return float(spearmanr(strengths, means)[0])  # pyright: ignore[reportArgumentType]
