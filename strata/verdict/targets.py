"""Targets of the params section ``targets``: bounds for metrics, and whether a measurement keeps them."""

import math
from collections.abc import Mapping
from typing import Any, TypedDict

from pydantic import ConfigDict, Field, model_validator

from strata import auto
from strata.run.door import near
from strata.run.params import Section, check

# What stability measures: the shares of the latents that come again with another seed.
AGAIN = ("again", "again_cofiring")

# Each metric can have a target. All but AGAIN are what train measures on the test split.
METRICS = (
    "mse",
    "fvu",
    "fvu_inlier",
    "cosine",
    "l0",
    "dead",
    "delta_ce",
    "kl",
    "ce_recovered",
    "ce_recovered_mean",
    "ce_clean",
    "ce_sae",
    "ce_zero",
    "ce_mean",
    *AGAIN,
)

# The least and the largest value of a metric. All others are 0 or more.
RANGES = {
    "cosine": (-1.0, 1.0),
    **dict.fromkeys(("dead", *AGAIN), (0.0, 1.0)),
    **dict.fromkeys(("delta_ce", "ce_recovered", "ce_recovered_mean"), (-math.inf, math.inf)),
}


class Bound(Section):
    """A target: ``min``, ``max`` or both. The ends themselves are allowed values."""

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _can_fail(self) -> "Bound":
        if self.min is None and self.max is None:
            raise ValueError("a target needs min, max or both, else it cannot fail")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}, so nothing could pass")
        return self

    def holds(self, value: float) -> bool:
        """Whether ``value`` lies within the bound. NaN does not."""
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)

    def excess(self, value: float) -> float:
        """Return how far ``value`` lies outside, relative to the bound that it breaks; 0 if it lies within.

        With ``max: 100``, 150 gives 0.5. With ``min: 50``, 40 gives 0.2. A bound of 0 counts as 1.
        """
        below = 0.0 if self.min is None else (self.min - value) / (abs(self.min) or 1.0)
        above = 0.0 if self.max is None else (value - self.max) / (abs(self.max) or 1.0)
        return max(below, above, 0.0)


class Targets(Section):
    """The section ``targets``: ``enforce``, and a bound for each metric that has a target.

    ``{enforce: false, l0: {min: 50, max: 100}}`` has ``bounds == {"l0": Bound(min=50, max=100)}``.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Bound] = Field(init=False)  # the type of every key beside enforce

    enforce: bool

    @model_validator(mode="before")
    @classmethod
    def _of_tokens(cls, section: Any) -> Any:
        """Replace each `auto` that is left by its value for tokens."""
        return auto.targets(section, "language", 0) if isinstance(section, dict) else section

    @property
    def bounds(self) -> dict[str, Bound]:
        """The targets in the order of params.yaml."""
        return self.__pydantic_extra__

    @model_validator(mode="after")
    def _known(self) -> "Targets":
        if unknown := [name for name in self.bounds if name not in METRICS]:
            meant = near(unknown[0], METRICS) or f"; the known ones are {', '.join(METRICS)}"
            raise ValueError(f"{unknown[0]!r} is not a metric{meant}")
        for name, bound in self.bounds.items():
            low, high = RANGES.get(name, (0.0, math.inf))
            if (bound.max is not None and bound.max < low) or (bound.min is not None and bound.min > high):
                raise ValueError(f"{name} lies between {low:g} and {high:g}, so nothing could pass")
        if not self.bounds:
            raise ValueError("there is no target; give at least one, e.g. mse: {max: 0.01}")
        return self


def settled(section: Mapping[str, Any], kind: str, k: int, pca: Mapping[str, float | None] | None = None) -> Targets:
    """Return the checked section ``targets``, with bounds in place of `auto` (see :func:`strata.auto.targets`)."""
    return check(auto.targets(section, kind, k, pca), Targets, "params.yaml: targets")


CHECKPOINT = ("l0", "dead")  # the targets that choose a checkpoint

# A line of the scorecard; ``pass`` is None where the metric does not apply.
Verdict = TypedDict(
    "Verdict", {"metric": str, "value": float | None, "min": float | None, "max": float | None, "pass": bool | None}
)


def judge(values: Mapping[str, float | None], targets: Targets) -> list[Verdict]:
    """Compare the test metrics of one SAE with every target, in the order of params.yaml.

    A value of None, such as cross-entropy without a language model, neither passes nor fails.
    """
    return [
        {
            "metric": metric,
            "value": (value := values[metric]),
            "min": bound.min,
            "max": bound.max,
            "pass": None if value is None else bound.holds(value),
        }
        for metric, bound in targets.bounds.items()
    ]


def passed(verdicts: list[Verdict]) -> bool:
    """Whether no target is missed."""
    return all(verdict["pass"] is not False for verdict in verdicts)


def penalty(l0: float | None, dead: float, targets: Targets) -> float:
    """Return what a checkpoint pays for leaving the bounds of l0 and of dead latents; without l0, for dead ones alone.

    The checkpoint of a training with the smallest score is the best. The score is

        fvu + excess(l0) + excess(dead)     where k sets l0: topk, batchtopk, matryoshka, jumprelu;
        fvu + price + excess(dead)          where the rule finds its own l0: relu, gated, reward.

    A relative excess of 1 % costs as much as 1 % of the variance. So within the bounds fvu alone decides, and far
    outside them it hardly matters.

    The price is what the rule itself pays for its codes (`Rule.price`). For such a rule k is only where it starts, and
    an l0 target would choose the checkpoint that has moved least from there. The scorecard still judges the target, and
    tune holds its trials against it, whatever the rule.
    """
    return sum(
        targets.bounds[metric].excess(value)
        for metric, value in zip(CHECKPOINT, (l0, dead), strict=True)
        if metric in targets.bounds and value is not None
    )
