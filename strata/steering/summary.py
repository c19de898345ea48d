"""What comes of the doses: the best effect that costs no more than a bound, and whether it beats the baselines'."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

Floats = NDArray[np.float64]
INTERVAL = (2.5, 97.5)  # percentiles of the bootstrap


class Best(NamedTuple):
    """(draw,) each."""

    strength: Floats
    effect: Floats
    kl: Floats


def best(strengths: list[float], effect: Floats, cost: Floats, bound: float) -> Best:
    """The largest effect that costs at most ``bound``; 0 at strength 0, not steering, where all others are below 0.

    ``effect``, ``cost``: (strength, draw) means over prompts. Where the cost of two neighbouring strengths lies on
    either side of the bound, the effect at the bound is read off between them, both the effect and the root of the cost
    taken as linear in the strength: for a small step KL is half the Fisher information times its square.
    """
    order = np.argsort([0.0, *strengths], kind="stable")
    nothing = np.zeros((1, effect.shape[1]))
    at = np.broadcast_to(np.array([0.0, *strengths])[order, None], (len(order), effect.shape[1]))
    effect, cost = (np.concatenate([nothing, values])[order] for values in (effect, cost))
    root, limit = np.sqrt(cost), np.sqrt(bound)
    crossed = (cost[:-1] <= bound) != (cost[1:] <= bound)
    share = (limit - root[:-1]) / np.where(crossed, np.diff(root, axis=0), 1.0)
    points = [np.concatenate([values, values[:-1] + share * np.diff(values, axis=0)]) for values in (at, effect, root)]
    points[1][~np.concatenate([cost <= bound, crossed])] = -np.inf
    chosen = points[1].argmax(0)[None]
    found = [np.take_along_axis(values, chosen, 0)[0] for values in points]
    return Best(found[0], found[1], found[2] ** 2)


def compared(
    strengths: list[float],
    own: tuple[Floats, Floats],
    other: tuple[Floats, Floats],
    bound: float,
    draws: NDArray[np.int64],
) -> dict[str, Any]:
    """How much better the latent's best effect is than a baseline's, with an interval over prompts drawn again.

    ``own``, ``other``: effect and cost, (strength, prompt) each. ``draws``: (draw, prompt) as :func:`drawn` makes
    them. Each draw chooses the best strengths anew.
    """
    first, second = (
        best(strengths, means(effect, draws), means(cost, draws), bound).effect for effect, cost in (own, other)
    )
    difference, *drawn_again = (first - second).tolist()
    low, high = np.percentile(drawn_again, INTERVAL)
    return {"difference": difference, "low": float(low), "high": float(high), "beats": bool(low > 0)}


def means(values: Floats, draws: NDArray[np.int64]) -> Floats:
    """(strength, 1 + draw) means of (strength, prompt) over all prompts, then over each draw."""
    return np.concatenate([values.mean(1, keepdims=True), values[:, draws].mean(2)], axis=1)


def drawn(prompts: int, number: int, random: np.random.Generator) -> NDArray[np.int64]:
    """(draw, prompt): ``number`` draws of as many prompts as there are, with replacement."""
    return random.integers(prompts, size=(number, prompts))


def monotone(strengths: list[float], effect: Floats) -> float | None:
    """Spearman's correlation of strength and mean effect; None where one of them does not vary."""
    means = effect.mean(1)
    if len(set(strengths)) < 2 or np.ptp(means) == 0:
        return None
    return float(spearmanr(strengths, means)[0])  # pyright: ignore[reportArgumentType]
