"""Judge every layer and its controls; flatten every number for `dvc exp show`."""

from collections.abc import Mapping
from typing import Any

from stages.report.results import Result
from strata.verdict.targets import Targets, judge

Scorecard = dict[str, Any]


def scorecard(results: list[Result], targets: Targets) -> Scorecard:
    """Hold each SAE, and each control beside it, against the targets.

    A control is a stand-in that no good SAE resembles (the mean, PCA, untrained weights). One that fails nothing
    (an empty ``fails``) means that the targets are too loose to say anything.
    """
    lines = [{"layer": result.layer, **line} for result in results for line in judge(result.test, targets)]
    controls = [
        {"layer": result.layer, "control": control, **line}
        for result in results
        for control, values in result.controls.items()
        for line in judge(values, targets)
    ]
    return {
        "targets": lines,
        "passed": sum(line["pass"] is True for line in lines),
        "failed": sum(line["pass"] is False for line in lines),
        "controls": controls,
        "controls_failing": [
            {
                "layer": result.layer,
                "control": control,
                "fails": [
                    line["metric"]
                    for line in controls
                    if (line["layer"], line["control"], line["pass"]) == (result.layer, control, False)
                ],
            }
            for result in results
            for control in result.controls
        ],
    }


def summary(
    results: list[Result],
    card: Scorecard,
    measured: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, float | int]:
    """Every number of the SAEs under a name that reads well as a column: ``train.9.fvu_inlier``.

    ``measured``: what the other stages did, ``interpret.9`` -> its numbers, nested: ``interpret.9.dropped.dead``.

    The controls' numbers stay in the scorecard: three times as many columns would hide the ones that one compares.
    What does not apply is left out, because DVC warns of a null metric.
    """
    numbers: dict[str, float | int] = {
        "targets.passed": card["passed"],
        "targets.failed": card["failed"],
        "controls.passing": sum(not control["fails"] for control in card["controls_failing"]),
    }
    for result in results:
        facts = {
            **result.test,
            **{name: getattr(result, name) for name in ("latents", "k", "batch_size", "epochs")},
            "best_step": result.best and result.best.step,
            "best_score": result.best and result.best.score,
            "outlier_rows": result.outliers.share_of_rows,
            "outlier_variance": result.outliers.share_of_variance,
        }
        numbers |= {f"train.{result.layer}.{name}": value for name, value in facts.items() if value is not None}
    for stage, found in (measured or {}).items():
        numbers |= _flat(found, f"{stage}.")
    return numbers


def _flat(values: Mapping[str, Any], prefix: str) -> dict[str, float | int]:
    """The numbers among nested ``values``; text, lists, null and the layer's own number are left out."""
    numbers: dict[str, float | int] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            numbers |= _flat(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and name != "layer":
            numbers[f"{prefix}{name}"] = value
    return numbers


def failures(card: Scorecard) -> list[str]:
    """A phrase for each target that fails: ``layer 3: delta_ce is 0.52, above its max 0.5``."""
    return [_phrase(line) for line in card["targets"] if line["pass"] is False]


def _phrase(line: dict[str, Any]) -> str:
    below = line["min"] is not None and line["value"] < line["min"]
    broken = f"below its min {line['min']:g}" if below else f"above its max {line['max']:g}"
    return f"layer {line['layer']}: {line['metric']} is {line['value']:.5g}, {broken}"
