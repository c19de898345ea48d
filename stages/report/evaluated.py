"""Show what evaluate measured, in the report."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from matplotlib.axes import Axes

from strata.pages.pictures import KINDS, SOFT, label_ends, png

Numbers = dict[str, Any]
NAMES = {  # what is probed -> how the report calls it
    "sae": "SAE",
    "seeds": "SAE, mean over its seeds",
    "frozen_decoder": "frozen decoder",
    "frozen_encoder": "frozen encoder",
    "near_random_decoder": "decoder near random",
    "random_model": "random model",
    "residual": "activations",
    "pca": "their PCA",
    "untrained": "random encoder",
    "drawn": "latents at random",
    "shuffled": "labels shuffled",
}
REGIMES = {  # of tasks -> what the report says of them
    "normal": "",
    "scarcity": ", few prompts",
    "imbalance": ", uneven prompts",
    "ood": ", judged by prompts of another kind",
}
POOLINGS = {"last": "last token", "mean": "mean over the prompt"}
LINES = dict(zip(("sae", "residual", "untrained", "pca"), KINDS, strict=True))  # what the picture shows -> its colour
COSTLY = {  # section -> its measure, how the report describes it, its control
    "absorption": (
        "absorbed",
        "parents absorbed by their children, on a made-up hierarchy; control: untrained",
        "untrained",
    ),
    "meta": ("explained", "variance of directions that an SAE of them explains; control: random directions", "random"),
}


def values_of(numbers: Mapping[str, Any]) -> Numbers:
    """Return what the summary says of `reports/evaluate/<L>.json`: its values, without intervals and controls."""
    parts = {name: part for name, part in numbers.items() if name != "controls" and isinstance(part, Mapping)}
    return {name: part["value"] if "value" in part else values_of(part) for name, part in parts.items()}


def probed(numbers: Numbers) -> dict[str, Numbers]:
    """Return what was probed -> k -> its accuracy, the SAE first; empty where there was no label to probe for."""
    probing = numbers["probing"]
    rows = {"sae": probing["sae"], **probing["controls"]} if "sae" in probing else {}
    return {name: rows[name] for name in NAMES if name in rows}


def task_tables(numbers: Numbers) -> list[tuple[str, dict[str, dict[str, Any]]]]:
    """Return a table for each regime and pooling of the tasks that others made: its name, and AUC by name and k.

    Empty where no task was judged. The SAE comes first, then its controls and other dictionaries.
    """
    tables = []
    for regime, summary in (numbers.get("tasks") or {}).items():
        if regime not in REGIMES or "why" in summary:
            continue
        for pooling, rows in summary.items():
            shown = {name: rows[name] for name in ("sae", "seeds") if name in rows} | rows["controls"]
            in_order = [name for name in NAMES if name in shown] + [name for name in shown if name not in NAMES]
            tables.append((f"{POOLINGS[pooling]}{REGIMES[regime]}", {name: shown[name]["auc"] for name in in_order}))
    return tables


def costly(numbers: Numbers) -> list[tuple[str, Any, Any]]:
    """Return a line for each measure that needed trainings: what it is, its value, the value of its control.

    Where it could not be measured, the reason stands in place of the value, and None in place of the control's.
    """
    lines = []
    for section, (measure, description, control) in COSTLY.items():
        part = numbers.get(section)
        if part is None:
            continue
        if reason := part.get("why"):
            lines.append((description, reason, None))
        else:
            lines.append((description, part[measure], part["controls"][control][measure]))
    return lines


def accuracies(evaluated: Mapping[int, Numbers]) -> dict[str, bytes]:
    """Draw the accuracy of a layer's probes by k, with intervals: `probing-<L>`, where something was probed.

    A line each for the SAE's latents, the activations' own channels, an encoder of random directions and the
    activations' principal components.
    """
    layers = {layer: rows for layer, numbers in evaluated.items() if (rows := probed(numbers))}
    ends = [measure[end] for rows in layers.values() for name in LINES for measure in rows[name].values()
            for end in ("low", "high")]  # fmt: skip

    def draw(rows: dict[str, Numbers], axes: Axes) -> None:
        names = []
        for place, (name, colour) in enumerate(LINES.items()):
            accuracies_by_k = list(rows[name].values())
            values = [accuracy["value"] for accuracy in accuracies_by_k]
            below = [abs(accuracy["low"] - accuracy["value"]) for accuracy in accuracies_by_k]
            above = [abs(accuracy["high"] - accuracy["value"]) for accuracy in accuracies_by_k]

            # Each line stands a little aside of the tick, so that no interval covers another.
            x = [tick + 0.1 * (place - 1.5) for tick in range(len(values))]
            width = 1.8 if name == "sae" else 1.1
            axes.errorbar(x, values, (below, above), color=colour, lw=width, elinewidth=0.7, marker="o", ms=2.5)
            names.append((values[-1], NAMES[name], colour))

        ticks = list(rows["sae"])
        axes.set_xticks(range(len(ticks)), ticks)
        axes.axhline(0.5, color=SOFT, lw=0.8)
        axes.set(xlabel="numbers that a probe sees (k)", ylabel="accuracy on held-out documents")
        axes.set_ylim(min(0.48, *ends) - 0.01, max(ends) + 0.01)  # the same for all layers
        label_ends(axes, names)

    return {f"probing-{layer}": png(partial(draw, rows), axes_grid=True) for layer, rows in layers.items()}
