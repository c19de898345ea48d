"""Targets: every one can fail, and nonsense is turned away at the door."""

import math
from typing import Any

import pytest

from strata.run.door import BadInput
from strata.run.params import check, load
from strata.verdict.targets import METRICS, Margin, Targets, judge, judge_margins, passed, penalty, settled

SECTION: dict[str, Any] = {
    "enforce": False,
    "mse": {"max": 0.01},
    "l0": {"min": 50, "max": 100},
    "dead": {"max": 0.10},
    "fvu_inlier": {"max": 0.12},
    "ce_recovered": {"min": 0.95},
    "delta_ce": {"max": 0.5},
}
GOOD: dict[str, float | None] = {
    "mse": 0.0046,
    "l0": 63.8,
    "dead": 0.001,
    "fvu_inlier": 0.09,
    "ce_recovered": 0.97,
    "delta_ce": 0.31,
}


def targets(section: dict[str, Any] = SECTION) -> Targets:
    return check(section, Targets, "params.yaml: targets")


def failing(values: dict[str, float | None]) -> list[str]:
    return [verdict["metric"] for verdict in judge({**GOOD, **values}, targets()) if verdict["pass"] is False]


def test_a_good_sae_passes_all():
    verdicts = judge(GOOD, targets())
    assert [verdict["metric"] for verdict in verdicts] == list(GOOD)
    assert all(verdict["pass"] is True for verdict in verdicts)
    assert passed(verdicts)
    assert verdicts[1] == {"metric": "l0", "value": 63.8, "min": 50, "max": 100, "pass": True}


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("mse", 0.011),
        ("l0", 49.9),
        ("l0", 100.1),
        ("dead", 0.11),
        ("fvu_inlier", 0.13),
        ("ce_recovered", 0.94),
        ("delta_ce", 0.51),
        ("mse", math.nan),
    ],
)
def test_each_target_can_fail(metric: str, value: float):
    assert failing({metric: value}) == [metric]


@pytest.mark.parametrize("l0", [750.0, 3250.0])
def test_what_ghosttrack_reached_fails_what_it_promised(l0: float):
    assert failing({"l0": l0}) == ["l0"]


def test_both_ends_of_a_bound_pass():
    assert failing({"l0": 50.0}) == failing({"l0": 100.0}) == failing({"mse": 0.01}) == []


def test_null_neither_passes_nor_fails():
    verdicts = judge({**GOOD, "ce_recovered": None, "delta_ce": None}, targets())
    assert [verdict["pass"] for verdict in verdicts] == [True, True, True, True, None, None]
    assert passed(verdicts)


def test_a_missing_measurement_is_a_mistake_not_a_pass():
    with pytest.raises(KeyError, match="delta_ce"):
        judge({name: value for name, value in GOOD.items() if name != "delta_ce"}, targets())


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({**SECTION, "msee": {"max": 1.0}}, "'msee' is not a metric; did you mean mse?"),
        ({**SECTION, "mse": {}}, "targets.mse: a target needs min, max or both"),
        ({**SECTION, "mse": {"min": 2.0, "max": 1.0}}, "min 2 is above max 1"),
        ({**SECTION, "mse": {"maximum": 1.0}}, "mse.maximum is not a known key"),
        ({**SECTION, "mse": {"max": "1e-4"}}, "write it without quotes"),
        ({**SECTION, "mse": 0.01}, "mse"),
        ({"mse": {"max": 0.01}}, "targets.enforce is missing"),
        ({"enforce": True}, "there is no target"),
        (None, "targets"),
    ],
)
def test_nonsense_is_one_sentence(section: Any, sentence: str):
    with pytest.raises(BadInput, match=r"^params.yaml: targets") as refusal:
        targets(section)
    assert sentence in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_penalty_is_zero_within_and_grows_with_the_relative_excess():
    assert penalty(50, 0.10, targets()) == penalty(100, 0.0, targets()) == 0.0
    assert penalty(150, 0.0, targets()) == pytest.approx(0.5)
    assert penalty(40, 0.0, targets()) == pytest.approx(0.2)
    assert penalty(64, 0.15, targets()) == pytest.approx(0.5)
    assert penalty(150, 0.15, targets()) == pytest.approx(1.0)
    assert penalty(1e6, 1.0, targets({"enforce": False, "mse": {"max": 1.0}})) == 0.0


def test_a_bound_of_zero_has_an_excess():
    assert penalty(64, 0.25, targets({"enforce": False, "dead": {"max": 0}})) == pytest.approx(0.25)


def test_the_defaults_in_params_yaml():
    defaults = settled(load("targets", dict), "language", 80)
    assert defaults == targets()  # what auto is for a language model
    assert set(defaults.bounds) <= set(METRICS)
    assert {"mse", "l0", "dead", "fvu_inlier", "ce_recovered", "delta_ce"} <= set(defaults.bounds)


BEATS = {
    **SECTION,
    "fvu_inlier": {"max": 0.12, "beats": {"frozen_decoder": 0.02}},
    "kl": {"beats": {"frozen_encoder": 0}},
}
TWINS: dict[str, dict[str, float | None]] = {
    "frozen_decoder": {"fvu_inlier": 0.13, "kl": 0.3},
    "frozen_encoder": {"kl": 0.25},
}


def margin(value: float, low: float, high: float) -> Margin:
    return Margin(value=value, low=low, high=high)


@pytest.mark.parametrize(
    ("of_decoder", "of_encoder", "expected"),
    [
        (margin(0.04, 0.03, 0.05), margin(0.05, 0.01, 0.09), [True, True]),
        (margin(0.04, 0.02, 0.06), margin(0.05, 0.0, 0.1), [True, True]),  # the ends are allowed
        (margin(0.04, 0.019, 0.06), margin(0.05, -0.01, 0.11), [False, False]),  # the value would do, not the interval
        (margin(0.01, 0.009, 0.011), margin(-0.2, -0.3, -0.1), [False, False]),  # better by too little; worse
    ],
)
def test_a_margin_can_fail_by_its_interval(of_decoder: Margin, of_encoder: Margin, expected: list[bool]):
    margins = {"frozen_decoder": {"fvu_inlier": of_decoder}, "frozen_encoder": {"kl": of_encoder}}
    lines = judge_margins({**GOOD, "kl": 0.2}, TWINS, margins, targets(BEATS))
    assert [line["pass"] for line in lines] == expected
    assert lines[0] == {
        "metric": "fvu_inlier", "twin": "frozen_decoder", "by": 0.02, "sae": 0.09, "value": 0.13,
        "margin": of_decoder.value, "low": of_decoder.low, "high": of_decoder.high, "pass": expected[0],
    }  # fmt: skip


def test_a_margin_that_was_not_measured_neither_passes_nor_fails():
    lines = judge_margins({**GOOD, "kl": None}, {}, {"frozen_decoder": {}}, targets(BEATS))
    assert [line["pass"] for line in lines] == [None, None] and lines[1]["margin"] is None
    assert "kl" not in [line["metric"] for line in judge({**GOOD, "kl": 0.2}, targets(BEATS))], "no bound of its own"
    assert penalty(150, 0.0, targets(BEATS)) == pytest.approx(0.5), "the checkpoint does not depend on margins"


@pytest.mark.parametrize(
    ("bound", "sentence"),
    [
        ({"beats": {}}, "needs min, max or both, else it cannot fail"),
        ({"beats": {"pca": 0.1}}, "fvu"),
        ({"beats": {"frozen_decoder": -0.1}}, "beats.frozen_decoder is -0.1"),
        ({"beats": {"random_model": 0.1}}, "beats names random_model, whose rows are others"),
    ],
)
def test_a_margin_that_cannot_be_is_one_sentence(bound: dict[str, Any], sentence: str):
    with pytest.raises(BadInput, match=r"^params.yaml: targets") as refusal:
        targets({**SECTION, "fvu": bound})
    assert sentence in str(refusal.value)
    with pytest.raises(BadInput, match="dead has beats, but only mse, fvu"):
        targets({**SECTION, "dead": {"beats": {"frozen_decoder": 0.1}}})
