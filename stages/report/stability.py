"""Show how many latents come again with another seed, in the report."""

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from strata.pages.pictures import INK, SOFT, legend_above, png

Numbers = dict[str, Any]
CONTROLS = {  # control -> how the report calls it, and the certificate that it stands beside
    "random": ("random directions", "again"),
    "rows": ("training rows as directions", "again"),
    "moved": ("their firing moved to other rows", "again_cofiring"),
}
POOLED = ("latents", "fvu", "fvu_inlier", "l0", "dead", "delta_ce")
DICTIONARIES = {
    "before": "the layer's own",
    "pooled": "latents that come again",
    "drawn": "as many at random, fitted likewise",
}


def values_of(numbers: Numbers) -> Numbers:
    """Return what the summary says of `reports/stability/<L>.json`: its values, without intervals and controls."""
    measures = ("again", "again_cofiring", "best_cosine", "best_cofiring")
    pooled = numbers.get("pooled", {})
    values = {name: numbers[name]["value"] for name in measures}
    values["seeds"] = len(numbers["seeds"])
    if "test" in pooled:
        values["pooled"] = {name: pooled["test"][name] for name in ("pooled", "drawn")}
    return values


def likeness(stability: Mapping[int, Numbers], colours: Mapping[int, str]) -> bytes | None:
    """Draw how many latents have a nearest latent of which cosine in other trainings, beside chance; None without any.

    The cosine is the mean over the trainings. The control is the stronger one, training rows as directions.
    """
    if not stability:
        return None

    def draw(axes: Axes) -> None:
        for layer, numbers in stability.items():
            histogram = numbers["histogram"]
            for name, style in (("cosine", "-"), ("rows", ":")):
                axes.stairs(histogram[name], histogram["edges"], color=colours[layer], ls=style, lw=1.2)

        axes.axvline(next(iter(stability.values()))["thresholds"]["cosine"], color=SOFT, lw=0.8)
        axes.set(xlabel="cosine with the nearest latent of another training", ylabel="latents", xlim=(0, 1))
        lines = [Line2D([], [], color=colours[layer], label=f"layer {layer}") for layer in stability]
        kinds = {"SAE": "-", "training rows": ":"}
        legend_above(axes, [*lines, *(Line2D([], [], color=INK, ls=ls, label=name) for name, ls in kinds.items())])

    return png(draw, axes_grid=True)
