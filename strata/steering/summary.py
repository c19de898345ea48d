"""Summarise the responses: the best effect that costs no more than a bound, and whether it beats the baselines."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

Floats = NDArray[np.float64]
INTERVAL = (2.5, 97.5)  # percentiles of the bootstrap


class Best(NamedTuple):
    """The best effect of each draw, the strength where it is, and its cost: (draw,) each."""

    strength: Floats
    effect: Floats
    kl: Floats


def best(strengths: list[float], effect: Floats, cost: Floats, bound: float) -> Best:
    """Find the largest effect that costs at most ``bound``, in each draw.

    ``effect``, ``cost``: (strength, draw) means over prompts. Strength 0 is always a candidate; its effect and cost are
    0. Where the costs of two neighbouring strengths lie on either side of the bound, the effect at the bound is a
    candidate too. It is interpolated: between the two, the effect and the root of the cost are taken as linear in the
    strength, because for a small step KL is half the Fisher information times its square.
    """
    # Rows in rising order of strength, with strength 0 among them: (candidate, draw).
    order = np.argsort([0.0, *strengths], kind="stable")
    zeros = np.zeros((1, effect.shape[1]))
    strength = np.broadcast_to(np.array([0.0, *strengths])[order, None], (len(order), effect.shape[1]))
    effect, cost = (np.concatenate([zeros, values])[order] for values in (effect, cost))

    # How far between two neighbours the bound is crossed, 0 to 1; of no meaning where it is not.
    root, limit = np.sqrt(cost), np.sqrt(bound)
    crossed = (cost[:-1] <= bound) != (cost[1:] <= bound)
    share = (limit - root[:-1]) / np.where(crossed, np.diff(root, axis=0), 1.0)

    # The strengths themselves, then the crossings between them.
    strength, effect, root = (
        np.concatenate([values, values[:-1] + share * np.diff(values, axis=0)]) for values in (strength, effect, root)
    )
    effect[~np.concatenate([cost <= bound, crossed])] = -np.inf
    largest = effect.argmax(0)[None]
    strength, effect, root = (np.take_along_axis(values, largest, 0)[0] for values in (strength, effect, root))
    return Best(strength, effect, root**2)


def compared(
    strengths: list[float],
    own: tuple[Floats, Floats],
    other: tuple[Floats, Floats],
    bound: float,
    draws: NDArray[np.int64],
) -> dict[str, Any]:
    """Compare the latent's best effect with a baseline's: their difference, with an interval over resampled prompts.

    ``own``, ``other``: the effect and the cost of each, (strength, prompt). ``draws``: (draw, prompt), as :func:`drawn`
    makes them. Each draw chooses its best strengths anew.
    """
    own_effect, other_effect = (
        best(strengths, means(effect, draws), means(cost, draws), bound).effect for effect, cost in (own, other)
    )
    difference, *resampled = (own_effect - other_effect).tolist()
    low, high = np.percentile(resampled, INTERVAL)
    return {"difference": difference, "low": float(low), "high": float(high), "beats": bool(low > 0)}


def means(values: Floats, draws: NDArray[np.int64]) -> Floats:
    """Average ``values`` (strength, prompt) over all prompts, then over each draw: (strength, 1 + draw)."""
    return np.concatenate([values.mean(1, keepdims=True), values[:, draws].mean(2)], axis=1)


def drawn(prompts: int, number: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Draw as many prompts as there are, with replacement, ``number`` times: (draw, prompt)."""
    return random.integers(prompts, size=(number, prompts))


def monotone(strengths: list[float], effect: Floats) -> float | None:
    """Compute Spearman's correlation of strength and mean effect; None where one of them does not vary.

    ``effect``: (strength, prompt).
    """
    means = effect.mean(1)
    if len(set(strengths)) < 2 or np.ptp(means) == 0:
        return None
    return float(spearmanr(strengths, means)[0])  # pyright: ignore[reportArgumentType]
