"""Targets of the params section ``targets``: bounds for metrics, and whether a measurement keeps them."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypedDict

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

# Metrics that say which of two SAEs is better, and that a bootstrap over documents can give an interval:
# 1 where the lower value is better, -1 where the higher one is.
WORSE = {
    **dict.fromkeys(("mse", "fvu", "fvu_inlier", "delta_ce", "kl", "ce_sae"), 1),
    **dict.fromkeys(("cosine", "ce_recovered", "ce_recovered_mean"), -1),
}

# Controls that are trained as an SAE is, so that they could win.
Twin = Literal["frozen_decoder", "frozen_encoder", "near_random_decoder", "random_model"]
ELSEWHERE: tuple[Twin, ...] = ("random_model",)  # judged on rows of its own, so that no document can be paired


class Bound(Section):
    """A target: ``min``, ``max`` or both, whose ends are allowed values; and ``beats``, twin -> least margin.

    The margin is the difference to that twin in the metric's own unit, above 0 where the SAE is better. The whole
    interval of the margin has to reach the number.
    """

    min: float | None = None
    max: float | None = None
    beats: dict[Twin, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _can_fail(self) -> "Bound":
        if self.min is None and self.max is None and not self.beats:
            raise ValueError("a target needs min, max or both, else it cannot fail")
        if unpaired := [twin for twin in ELSEWHERE if twin in self.beats]:
            raise ValueError(f"beats names {unpaired[0]}, whose rows are others, so that there is no margin over it")
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
            if bound.beats and name not in WORSE:
                raise ValueError(f"{name} has beats, but only {', '.join(WORSE)} say which of two SAEs is better")
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

    A value of None, such as cross-entropy without a language model, neither passes nor fails. A target of ``beats``
    alone has no line here; see :func:`judge_margins`.
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
        if bound.min is not None or bound.max is not None
    ]


class Margin(Section):
    """By how much an SAE beats a twin in one metric: the difference, above 0 where the SAE is better, and its 95 %
    interval."""

    value: float
    low: float
    high: float


# A line of the scorecard about a twin: the target's ``by``, the two values, the margin. ``pass`` is as above.
MarginVerdict = TypedDict(
    "MarginVerdict",
    {
        "metric": str,
        "twin": str,
        "by": float,
        "sae": float | None,
        "value": float | None,
        "margin": float | None,
        "low": float | None,
        "high": float | None,
        "pass": bool | None,
    },
)


def judge_margins(
    values: Mapping[str, float | None],
    twins: Mapping[str, Mapping[str, float | None]],
    margins: Mapping[str, Mapping[str, Margin]],
    targets: Targets,
) -> list[MarginVerdict]:
    """Compare the margins of one SAE over its twins with every target's ``beats``, in the order of params.yaml.

    ``values``: the SAE's test metrics. ``twins``: twin -> its test metrics. ``margins``: twin -> metric -> margin. A
    target passes if the whole interval reaches it. A margin that is not there, because the metric does not apply or
    the twin was not trained, neither passes nor fails.
    """
    lines: list[MarginVerdict] = []
    for metric, bound in targets.bounds.items():
        for twin, by in bound.beats.items():
            margin = margins.get(twin, {}).get(metric)
            lines.append(
                {
                    "metric": metric,
                    "twin": twin,
                    "by": by,
                    "sae": values[metric],
                    "value": twins.get(twin, {}).get(metric),
                    "margin": margin and margin.value,
                    "low": margin and margin.low,
                    "high": margin and margin.high,
                    "pass": None if margin is None else margin.low >= by,
                }
            )
    return lines


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
