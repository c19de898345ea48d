"""Choose which knobs to try next, with scikit-optimize: ask for a point, tell its score, ask again.

The same seed and the same scores give the same points, bit for bit. So a search that was interrupted is told its trials
again, and goes on where it was.
"""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from skopt import Optimizer
from skopt.space import Categorical, Integer, Real, Space
from threadpoolctl import threadpool_limits

from strata.tuning.knobs import Range, Tune, ends

# The least and the largest score that are told. The largest is also that of a failure: fvu 1, and 9 for all latents
# dead where 10 % may be.
BEST, WORST = 1e-9, 10.0
MODELS = {"gp": "GP", "forest": "ET"}
DIGITS = 3  # significant digits of a proposed number
CANDIDATES = 2000  # points whose expected improvement is computed; the best few are then improved by gradient

Point = dict[str, Any]


def dimensions(tune: Tune) -> list[Any]:
    """Turn tune.space into the dimensions of scikit-optimize, in the same order."""
    return [_dimension(name, tune) for name in tune.space]


def _dimension(name: str, tune: Tune) -> Any:
    """Turn one range or list of choices into a dimension."""
    spread = tune.space[name]
    if not isinstance(spread, Range):
        return Categorical(spread, name=name)

    prior = "log-uniform" if spread.log else "uniform"
    low, high = ends(name, spread)
    return (Integer if isinstance(low, int) else Real)(low, high, prior=prior, name=name)


class Search:
    """A search over the knobs of tune.space.

    The sampler ``gp`` is a Gaussian process, ``forest`` extremely randomised trees. Both model ln(score). After
    ``starts`` points of a Latin hypercube they take the point with the largest expected improvement. ``dummy`` takes
    every point at random.

    ``first``: a point to begin with, the knobs as params.yaml has them. It is left out if the space does not hold it.
    ``told``: each point that was asked for, and the logarithm of its score.
    """

    def __init__(self, tune: Tune, seed: int, first: Point | None = None) -> None:
        self.names = list(tune.space)
        self.space = Space(dimensions(tune))
        point = None if first is None else [first[name] for name in self.names]
        self.first = point if point is not None and self._holds(point) else None

        self._asked: list[Any] = []
        self.told: list[tuple[list[Any], float]] = []
        self.model: Optimizer | None = None
        self._random = np.random.RandomState(seed)

        if tune.sampler in MODELS:
            self.model = Optimizer(
                dimensions(tune),
                base_estimator=MODELS[tune.sampler],
                n_initial_points=tune.starts + (self.first is not None),
                initial_point_generator="lhs",
                acq_func="EI",
                acq_optimizer_kwargs={"n_points": CANDIDATES},
                random_state=seed,
            )

    def _holds(self, point: list[Any]) -> bool:
        """Whether ``point`` lies in the space. null lies in a list of choices that has it, and in no range."""
        ranges = [not isinstance(part, Categorical) for part in self.space]
        return not any(value is None for value, is_range in zip(point, ranges, strict=True) if is_range) and (
            point in self.space
        )

    def ask(self) -> Point:
        """Choose the next point: knob -> value."""
        if self.first is not None and not self.told:
            self._asked = self.first
        elif self.model is None:
            self._asked = next(iter(self.space.rvs(random_state=self._random) or []))
        else:
            with _quiet():
                self._asked = self.model.ask() or []

        if self._asked is not self.first:
            self._asked = [_rounded(value, part) for value, part in zip(self._asked, self.space, strict=True)]
        return {name: plain(value) for name, value in zip(self.names, self._asked, strict=True)}

    def tell(self, score: float | None) -> None:
        """Take in the score of the point that was asked for last; None: it failed."""
        log_score = math.log(min(max(WORST if score is None else score, BEST), WORST))
        self.told.append((self._asked, log_score))
        if self.model is not None:
            with _quiet():
                self.model.tell(self._asked, log_score)


def _rounded(value: Any, part: Any) -> Any:
    """Round a real number to DIGITS significant digits, within its range. Leave anything else as it is.

    The last bits of a proposal depend on the kernels that BLAS chooses (by the processor, or by OPENBLAS_CORETYPE).
    From one trial to the next such a difference would grow: from 1e-12 of an lr to 6e-7 of another one two trials
    later.
    """
    if not isinstance(part, Real):
        return value
    return min(max(float(f"{value:.{DIGITS}g}"), part.low), part.high)


def plain(value: Any) -> Any:
    """Turn a number or text of NumPy into Python's own."""
    return value.item() if isinstance(value, np.generic) else value


@contextmanager
def _quiet() -> Iterator[None]:
    """Run the model on one thread and without warnings inside the block.

    The matrices are tiny, and sums depend on the number of threads. The warnings are about repeated points, which
    `tune.search` does not train again.
    """
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
