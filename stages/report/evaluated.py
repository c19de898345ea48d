"""What evaluate measured, as the report shows it."""

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from strata.pages.pictures import INK, SOFT, png

Numbers = dict[str, Any]
NAMES = {
    "sae": "SAE",
    "residual": "activations",
    "pca": "their PCA",
    "untrained": "random encoder",
    "drawn": "latents at random",
    "shuffled": "labels shuffled",
}
LINES = {"sae": "-", "residual": "--", "pca": ":"}  # those of the picture


def values_of(found: Mapping[str, Any]) -> Numbers:
    """What the summary takes of `reports/evaluate/<L>.json`: the values alone; intervals and controls stay there."""
    kept = {name: part for name, part in found.items() if name != "controls" and isinstance(part, Mapping)}
    return {name: part["value"] if "value" in part else values_of(part) for name, part in kept.items()}


def probed(found: Numbers) -> dict[str, Numbers]:
    """What was probed -> k -> its accuracy, the SAE first; empty where there was no label to probe for."""
    probing = found["probing"]
    rows = {"sae": probing["sae"], **probing["controls"]} if "sae" in probing else {}
    return {name: rows[name] for name in NAMES if name in rows}


COSTLY = {  # section -> its measure, what the report says of it, its control
    "stability": (
        "again",
        "latents that come again when trained with another seed; control: random directions",
        "random",
    ),
    "absorption": (
        "absorbed",
        "parents absorbed by their children, on a made-up hierarchy; control: untrained",
        "untrained",
    ),
    "meta": ("explained", "variance of directions that an SAE of them explains; control: random directions", "random"),
}


def costly(found: Numbers) -> list[tuple[str, Any, Any]]:
    """What took trainings: what it is, its measure, its control's; or in place of the measure why there is none."""
    lines = []
    for section, (name, said, control) in COSTLY.items():
        if (part := found.get(section)) is not None:
            why = part.get("why")
            lines.append((said, why or part[name], None if why else part["controls"][control][name]))
    return lines


def accuracies(evaluated: Mapping[int, Numbers], colours: Mapping[int, str]) -> bytes | None:
    """Accuracy by k of the SAE, of the activations' own channels and of their principal components, with intervals."""
    layers = {layer: rows for layer, found in evaluated.items() if (rows := probed(found))}
    if not layers:
        return None

    def draw(axes: Axes) -> None:
        for number, (layer, rows) in enumerate(layers.items()):
            for line, (name, style) in enumerate(LINES.items()):
                measured = list(rows[name].values())
                aside = 0.5 * ((number * len(LINES) + line + 0.5) / (len(layers) * len(LINES)) - 0.5)
                at = [place + aside for place in range(len(measured))]  # so that no interval covers another
                values = [one["value"] for one in measured]
                low, high = ([abs(one[end] - one["value"]) for one in measured] for end in ("low", "high"))
                axes.errorbar(at, values, (low, high), color=colours[layer], ls=style, lw=1.1, elinewidth=0.6)
        ticks = list(next(iter(layers.values()))["sae"])
        axes.set_xticks(range(len(ticks)), ticks)
        axes.axhline(0.5, color=SOFT, lw=0.8)
        axes.set(xlabel="latents, channels or components that a probe has", ylabel="accuracy on held-out documents")
        lines = [Line2D([], [], color=colours[layer], label=f"layer {layer}") for layer in layers]
        axes.legend(handles=[*lines, *(Line2D([], [], color=INK, ls=LINES[n], label=NAMES[n]) for n in LINES)])

    return png(draw, axes_grid=True)
