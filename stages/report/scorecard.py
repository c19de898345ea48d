"""Judge every layer and its controls, and flatten every number for `dvc exp show`."""

from collections.abc import Mapping
from typing import Any

from stages.report.verdict import verdict
from stages.train.read import Measured, Result
from strata.twins.read import Twins
from strata.verdict.targets import AGAIN, Targets, judge, judge_margins

Scorecard = dict[str, Any]


def scorecard(
    results: list[Result],
    targets: Targets,
    twins: Mapping[int, Twins] | None = None,
    again: Mapping[int, Measured] | None = None,
) -> Scorecard:
    """Hold each SAE, and each control beside it, against the targets.

    A control is a stand-in that no good SAE resembles (the mean, PCA, untrained weights). If a control fails no target
    (an empty ``fails``), the targets are too loose to say anything.

    A twin (layer -> ``twins``) was trained at equal budget, and may pass every target. Therefore it counts for nothing
    here; ``margins`` says by how much the SAE beats it, where a target asks for that. ``again``: layer -> the metrics
    AGAIN, where stability ran. They are of trainings, which neither the controls nor the twins are.
    """
    # Stability is of the layer's own trainings: its metrics are unknown where it did not run, and of all stand-ins.
    twins = twins or {}
    unknown: Measured = dict.fromkeys(AGAIN)
    lines = [
        {"layer": result.layer, **line}
        for result in results
        for line in judge({**result.test, **unknown, **(again or {}).get(result.layer, {})}, targets)
    ]

    # By how much the SAE beats a twin, where a target asks for it; and the twins against the same targets.
    margins = [
        {"layer": result.layer, **line}
        for result in results
        if (found := twins.get(result.layer))
        for line in judge_margins(
            result.test,
            {name: twin.test for name, twin in found.twins.items()},
            {name: twin.margin for name, twin in found.twins.items()},
            targets,
        )
    ]
    beside = [
        {"layer": layer, "twin": name, **line}
        for layer, found in twins.items()
        for name, twin in found.twins.items()
        for line in judge({**twin.test, **unknown}, targets)
    ]

    # The three controls, and which targets each of them misses. One that no target judges is left out.
    controls = [
        {"layer": result.layer, "control": control, **line}
        for result in results
        for control, values in result.controls.items()
        for line in judge({**values, **unknown}, targets)
    ]
    missed = [(line["layer"], line["control"], line["metric"]) for line in controls if line["pass"] is False]
    judged_controls = {(line["layer"], line["control"]) for line in controls if line["pass"] is not None}
    controls_failing = [
        {
            "layer": result.layer,
            "control": control,
            "fails": [metric for layer, name, metric in missed if (layer, name) == (result.layer, control)],
        }
        for result in results
        for control in result.controls
        if (result.layer, control) in judged_controls
    ]

    judged = [*lines, *margins]
    passed, failed = (sum(line["pass"] is kind for line in judged) for kind in (True, False))
    return {
        "verdict": verdict(passed, failed, twins),
        "targets": lines,
        "margins": margins,
        "passed": passed,
        "failed": failed,
        "twins": beside,
        "controls": controls,
        "controls_failing": controls_failing,
    }


def summary(
    results: list[Result],
    card: Scorecard,
    measured: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, float | int]:
    """Flatten every number under a name that reads well as a column: ``train.9.fvu_inlier``.

    ``measured``: the numbers of the other stages, ``interpret.9`` -> numbers that may be nested. A nested one becomes
    ``interpret.9.dropped.dead``.

    The controls' numbers stay in the scorecard: three times as many columns would hide those that a reader compares.
    A metric that does not apply is left out, because DVC warns of a null metric.
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

    for stage, values in (measured or {}).items():
        numbers |= _flat(values, f"{stage}.")
    return numbers


def _flat(values: Mapping[str, Any], prefix: str) -> dict[str, float | int]:
    """Flatten the numbers among nested ``values``. Leave out text, lists, null and the number of the layer."""
    numbers: dict[str, float | int] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            numbers |= _flat(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and name != "layer":
            numbers[f"{prefix}{name}"] = value
    return numbers


def failures(card: Scorecard) -> list[str]:
    """Return a phrase for each target that fails: ``layer 3: delta_ce is 0.52, above its max 0.5``."""
    return [
        *(_phrase(line) for line in card["targets"] if line["pass"] is False),
        *(_margin_phrase(line) for line in card["margins"] if line["pass"] is False),
    ]


def worded(low: float | None, high: float | None) -> str:
    """Write a target as a condition: ``≤ 0.01``, ``50 – 100``."""
    if low is None:
        return f"≤ {high:g}"
    return f"≥ {low:g}" if high is None else f"{low:g} – {high:g}"


def _phrase(line: dict[str, Any]) -> str:
    value, low = line["value"], line["min"]
    below = low is not None and value < low
    name, end = ("below its min", low) if below else ("above its max", line["max"])

    # As many digits as elsewhere, or as many as it takes to show which side of the target it is on.
    shown = next(text for digits in (3, 5, 17) if float(text := f"{value:.{digits}g}") != end)
    return f"layer {line['layer']}: {line['metric']} is {shown}, {name} {end:g}"


def _margin_phrase(line: dict[str, Any]) -> str:
    interval = f"{line['margin']:.3g}, from {line['low']:.3g} to {line['high']:.3g}"
    return f"layer {line['layer']}: {line['metric']} beats {line['twin']} by {interval}, not surely by {line['by']:g}"
