"""Compare two groups of trainings, A and B, metric by metric: is A better, worse, or undecided?

A training with another seed gives another SAE, and other documents (or tasks) give another number for the same SAE. A
verdict must hold for both: for new seeds and for new documents. So seeds and documents are crossed random effects.

    v_s = Σ_i e_si / Σ_i w_i       value of seed s: e (seed, item) are sums over an item's rows, w (item,) its weight
    d   = mean of v over A's seeds - mean of v over B's seeds
    V_seeds  = var(v_As - v_Bs) / n                  where A and B have the same seeds: pairs; n - 1 degrees of freedom
             = var(v_A) / n_A + var(v_B) / n_B       else: Welch, with Welch's degrees of freedom
    V_items  = m / (m - 1) Σ_i (D_i - d w_i)² / (Σ_i w_i)²      D_i = mean of e_Ai - mean of e_Bi; m - 1 degrees
    V        = V_seeds + V_items                     with Satterthwaite's degrees of freedom

The sum counts the part of the variance in which seed and item interact twice, so the interval is at worst a little too
wide. V_items is the linearised variance of a ratio of sums, to which a bootstrap over items converges.

There are two t-tests: by V_seeds, and by V. A verdict needs both, so the larger p counts. The second protects against
few items. The first protects against few seeds: Satterthwaite's degrees of freedom are too many where a small spread of
two or three seeds is small by chance. Holm's step-down correction over all metrics keeps the probability that any
verdict is wrong below ``ERROR``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from strata.run.door import BadInput

ERROR = 0.05  # the probability that at least one of the verdicts is wrong, at most
CHANCE = 0.8  # of a verdict, for which seeds or documents are counted
MOST = 1000  # more seeds than this, or this many times the documents, are not counted
SAME = 1e-9  # values that differ by less than this share of their size are the same number, up to rounding

Floats = NDArray[np.float64]
Verdict = Literal["better", "worse", "undecided"]
Items = Literal["documents", "tasks", "features"]


@dataclass(frozen=True)
class Side:
    """One metric of one group of trainings.

    ``sums``: (seed, item) float64. ``weights``: (item,) float64, the same for both sides. The value of a seed is
    Σ sums / Σ weights. Where only the value of each seed is known, there is one item of weight 1. ``seeds``: the seed
    of each training, where it is known.
    """

    sums: Floats
    weights: Floats
    seeds: tuple[int, ...] | None = None

    @property
    def values(self) -> Floats:
        """The value of each seed, (seed,)."""
        return self.sums.sum(1) / self.weights.sum()


@dataclass(frozen=True)
class Metric:
    """A metric of both sides. ``lower``: whether lower is better.

    ``items``: what the columns of ``sums`` are; None: the value of each seed alone is known. ``step``: the least
    difference that two values can have, for a metric that counts: few seeds may agree by chance, and then their spread
    says nothing.
    """

    name: str
    lower: bool
    a: Side
    b: Side
    items: Items | None = None
    step: float = 0.0


@dataclass(frozen=True)
class Spread:
    """A variance of the difference, and the degrees of freedom with which it is known."""

    variance: float
    freedom: float

    def __add__(self, other: "Spread") -> "Spread":
        """Add an independent part, with Satterthwaite's degrees of freedom."""
        variance = self.variance + other.variance
        parts = [part for part in (self, other) if part.variance > 0]
        if not parts:
            return Spread(0.0, min(self.freedom, other.freedom))
        return Spread(variance, variance**2 / sum(part.variance**2 / part.freedom for part in parts))

    def p(self, difference: float) -> float:
        """Return the two-sided p of a difference from 0."""
        if not self.variance:
            return 0.0 if difference else 1.0
        return float(2 * stdtr(self.freedom, -abs(difference) / sqrt(self.variance)))

    def half(self, level: float) -> float:
        """Return half the width of the interval that excludes 0 where p is below ``level``."""
        return float(stdtrit(self.freedom, 1 - level / 2)) * sqrt(self.variance)

    def suffices(self, difference: float, level: float) -> bool:
        """Say whether a true ``difference`` of this size gives p below ``level`` with a probability of CHANCE."""
        return self.half(level) + float(stdtrit(self.freedom, CHANCE)) * sqrt(self.variance) <= abs(difference)


@dataclass(frozen=True)
class Row:
    """A metric's verdict, and why. "better" means that A is better than B.

    ``difference`` is A - B. ``low`` and ``high`` bound it: the interval holds what seeds alone say and what seeds and
    items say together, at Holm's ``level`` of this metric, and excludes 0 exactly where there is a verdict. They are
    None where one side has one seed, and so is ``p``. ``items_low`` and ``items_high``: what the items alone say at 95
    %. ``paired``: whether A and B have the same seeds.

    ``more_seeds``: how many more on each side would give a verdict with a probability of CHANCE if the difference and
    its spread stay as they are; ``more_items``: the same of documents or tasks, with the seeds that are there. 0: there
    is a verdict. None: not even MOST would, or it is not known. ``together``: neither does alone, but both do.

    ``by_seed``: A - B of each seed where they are paired, else each seed of A minus the mean of B.
    """

    metric: str
    lower: bool
    a: float
    b: float
    seeds_a: int
    seeds_b: int
    paired: bool
    items: Items | None
    item_count: int | None
    difference: float
    low: float | None
    high: float | None
    items_low: float | None
    items_high: float | None
    p: float | None
    level: float | None
    verdict: Verdict
    more_seeds: int | None
    more_items: int | None
    together: bool
    by_seed: tuple[float, ...]


def compare(metrics: Sequence[Metric], error: float = ERROR) -> list[Row]:
    """Judge every metric, in their order. ``error``: the probability that any verdict is wrong, at most.

    Raises BadInput where there is nothing to judge, or the two sides of a metric do not have the same items.
    """
    if not metrics:
        raise BadInput("A and B have no metric in common, so that nothing can be compared")
    for metric in metrics:
        _check(metric)

    differences = [_difference(metric) for metric in metrics]
    spreads = [(of_seeds(metric), of_items(metric)) for metric in metrics]
    ps = [_p(difference, *parts) for difference, parts in zip(differences, spreads, strict=True)]
    levels = holm([p for p in ps if p is not None], error)
    known = iter(levels)
    return [
        _row(metric, difference, *parts, p, None if p is None else next(known))
        for metric, difference, parts, p in zip(metrics, differences, spreads, ps, strict=True)
    ]


def holm(ps: Sequence[float], error: float) -> list[float]:
    """Return the level below which each p gives a verdict, so that any verdict is wrong with probability ``error``.

    The smallest of m is held against error / m, the next one against error / (m - 1), and so on up to the first that
    is not below its level; that level counts for all that follow (Holm 1979).
    """
    order = np.argsort(ps, kind="stable")
    levels, level, passed = [0.0] * len(ps), 0.0, True
    for rank, place in enumerate(order):
        if passed:
            level = error / (len(ps) - rank)
            passed = ps[place] < level
        levels[place] = level
    return levels


def of_seeds(metric: Metric, count: int | None = None) -> Spread | None:
    """Return what seeds do to the difference; None where a side has one seed, whose spread nobody knows.

    ``count``: what so many seeds on each side would do, if each varies as those that are there. A value that is rounded
    to steps varies by step² / 12 at least, and a difference of two by twice that.
    """
    a, b = metric.a.values, metric.b.values
    if min(len(a), len(b)) < 2:
        return None

    rounding = metric.step**2 / 12
    if paired(metric):
        pairs = count or len(a)
        return Spread(max(float((a - _in_order(metric)).var(ddof=1)), 2 * rounding) / pairs, pairs - 1)
    spreads = [Spread(max(float(side.var(ddof=1)), rounding) / (n := count or len(side)), n - 1) for side in (a, b)]
    return spreads[0] + spreads[1]


def of_items(metric: Metric) -> Spread | None:
    """Return what documents or tasks do to the difference; None where there are not two of them."""
    weights = metric.a.weights
    if metric.items is None or len(weights) < 2:
        return None
    by_item = metric.a.sums.mean(0) - metric.b.sums.mean(0)
    total, count = weights.sum(), len(weights)
    apart = by_item - by_item.sum() / total * weights
    return Spread(float(count / (count - 1) * (apart @ apart) / total**2), count - 1)


def paired(metric: Metric) -> bool:
    """Say whether A and B have the same seeds, each of them once."""
    a, b = metric.a.seeds, metric.b.seeds
    return a is not None and b is not None and len(set(a)) == len(a) and sorted(a) == sorted(b)


def _in_order(metric: Metric) -> Floats:
    """Return the values of B in the order of A's seeds."""
    assert metric.a.seeds is not None and metric.b.seeds is not None
    return metric.b.values[[metric.b.seeds.index(seed) for seed in metric.a.seeds]]


def _check(metric: Metric) -> None:
    """Refuse sides that were not measured on the same items, and values that are no numbers."""
    if metric.a.weights.shape != metric.b.weights.shape or not np.allclose(metric.a.weights, metric.b.weights):
        raise BadInput(f"{metric.name} was not measured on the same {metric.items or 'rows'} for A and for B")
    if not (np.isfinite(metric.a.values).all() and np.isfinite(metric.b.values).all()):
        raise BadInput(f"{metric.name} is not a finite number for every seed, so that A and B cannot be compared")


def _difference(metric: Metric) -> float:
    """Return the mean of A minus the mean of B; exactly 0 where no more than rounding is between them."""
    a, b = float(metric.a.values.mean()), float(metric.b.values.mean())
    return a - b if abs(a - b) > SAME * max(abs(a), abs(b)) else 0.0


def _p(difference: float, seeds: Spread | None, items: Spread | None) -> float | None:
    """Return the larger of the two p; None where a side has one seed."""
    if seeds is None:
        return None
    return max(seeds.p(difference), (seeds + items).p(difference)) if items else seeds.p(difference)


def _row(
    metric: Metric, difference: float, seeds: Spread | None, items: Spread | None, p: float | None, level: float | None
) -> Row:
    half = None
    if seeds is not None and level is not None:
        half = max(spread.half(level) for spread in ([seeds, seeds + items] if items else [seeds]))
    items_half = items.half(ERROR) if items else None
    decided = p is not None and level is not None and p < level
    more_seeds, more_items, together = (0, 0, False) if decided else _lacking(metric, difference, items, level)

    return Row(
        metric=metric.name,
        lower=metric.lower,
        a=float(metric.a.values.mean()),
        b=float(metric.b.values.mean()),
        seeds_a=len(metric.a.values),
        seeds_b=len(metric.b.values),
        paired=paired(metric),
        items=metric.items,
        item_count=len(metric.a.weights) if metric.items else None,
        difference=difference,
        low=None if half is None else difference - half,
        high=None if half is None else difference + half,
        items_low=None if items_half is None else difference - items_half,
        items_high=None if items_half is None else difference + items_half,
        p=p,
        level=level,
        verdict="undecided" if not decided else "better" if (difference < 0) == metric.lower else "worse",
        more_seeds=more_seeds,
        more_items=more_items,
        together=together,
        by_seed=tuple((metric.a.values - (_in_order(metric) if paired(metric) else metric.b.values.mean())).tolist()),
    )


def _lacking(
    metric: Metric, difference: float, items: Spread | None, level: float | None
) -> tuple[int | None, int | None, bool]:
    """Return more_seeds, more_items and together of a :class:`Row` without a verdict."""
    if level is None or not difference:
        return None, None, False
    seeds_now, items_now = min(len(metric.a.values), len(metric.b.values)), len(metric.a.weights)

    def suffice(seeds: int, documents: int) -> bool:
        seeds_part = of_seeds(metric, seeds)
        if seeds_part is None or not seeds_part.suffices(difference, level):
            return False
        if items is None:
            return True
        items_part = Spread(items.variance * items_now / documents, documents - 1)
        return (seeds_part + items_part).suffices(difference, level)

    more_seeds = _fewest(lambda count: suffice(count, items_now), seeds_now, MOST)
    if items is None:
        return more_seeds, None, False
    more_items = _fewest(lambda count: suffice(seeds_now, count), items_now, MOST * items_now)
    if more_seeds is not None or more_items is not None:
        return more_seeds, more_items, False

    # Neither alone: as many times of both.
    more_seeds = _fewest(lambda count: suffice(count, -(-items_now * count // seeds_now)), seeds_now, MOST)
    if more_seeds is None:
        return None, None, False
    return more_seeds, -(-items_now * more_seeds // seeds_now), True


def _fewest(suffices: Callable[[int], bool], now: int, most: int) -> int | None:
    """Find how many more than ``now`` suffice, at least one, by doubling and halving; None where ``most`` do not."""
    low, high = now, now + 1
    while not suffices(high):
        if high >= most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return high - now
