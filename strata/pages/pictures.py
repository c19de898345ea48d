"""Pictures as PNG bytes. They hold no time, version or path, so that the same picture has the same bytes."""

import math
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any, Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

INK, SOFT, FAINT = "#3b4252", "#9aa3b2", "#e1e5ec"
GREEN = "#2e7d4f"  # targets
KINDS = ("#c2410c", "#0072b2", "#00875a", "#7b7f8a")  # up to four kinds of line: told apart by the colour-blind, too
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "axes.titlesize": 9,
}
SIZE = 4.0, 2.9  # inches: in a column of 350 CSS pixels, as on a phone, the text is still 11 pixels high
LOG_STEPS = (
    (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8),
    (1, 1.5, 2, 3, 5, 7),
    (1, 2, 5),
    (1, 3),
    (1,),
)  # ticks in a decade, from many to few
LETTER = 0.065  # height of a line of text, as a share of a picture's axes


def drawn(
    draw: Callable[..., None], size: tuple[float, float] = SIZE, dpi: int = 100, panels: int = 1, apart: bool = False
) -> Figure:
    """Draw a figure: call ``draw`` with ``panels`` axes side by side, in matplotlib's current style.

    ``size`` in inches. ``apart``: each panel has its own vertical scale.
    """
    figure = Figure(figsize=size, dpi=dpi, layout="constrained")
    draw(*np.atleast_1d(figure.subplots(1, panels, sharey=panels > 1 and not apart)))
    return figure


def png(
    draw: Callable[..., None],
    size: tuple[float, float] = SIZE,
    dpi: int = 240,
    panels: int = 1,
    apart: bool = False,
    **style: Any,
) -> bytes:
    """Draw a figure as :func:`drawn` does, in our style, and return it as PNG.

    ``style``: settings that differ from our style, with `_` in place of the first dot (``font_size=12``).
    """
    changes: dict[Any, Any] = {name.replace("_", ".", 1): value for name, value in style.items()}
    with rc_context({**STYLE, **changes}):
        figure = drawn(draw, size, dpi, panels, apart)
        file = BytesIO()
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def legend_above(axes: Axes, handles: Sequence[Artist], columns: int = 3) -> None:
    """Put the legend of ``handles`` above the axes, where it covers nothing."""
    axes.legend(
        handles=list(handles),
        ncols=columns,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        borderaxespad=0.2,
        handlelength=1.4,
        columnspacing=1.2,
    )


def label_ends(axes: Axes, lines: Sequence[tuple[float, str, str]]) -> None:
    """Write at the right of the axes what each line is. Call it when the limits and the scale are settled.

    ``lines``: the last height of each line, its name, its colour. Names that would stand on each other move apart.
    """
    axes.get_ylim()  # settles the limits
    heights = axes.transData.transform([(axes.get_xlim()[1], height) for height, _, _ in lines])
    shares = axes.transAxes.inverted().transform(heights)[:, 1]
    order = sorted(range(len(lines)), key=lambda line: shares[line])

    # From below each name moves up until it is clear of the one before; then the pile moves down into the axes.
    places = [min(max(float(shares[line]), 0.0), 1.0) for line in order]
    for index in range(1, len(places)):
        places[index] = max(places[index], places[index - 1] + LETTER)
    for index in reversed(range(len(places))):
        roof = 1.0 if index == len(places) - 1 else places[index + 1] - LETTER
        places[index] = min(places[index], roof)

    for line, place in zip(order, places, strict=True):
        _, name, colour = lines[line]
        axes.text(1.02, place, name, color=colour, va="center", transform=axes.transAxes)


def log_ticks(axes: Axes, of: Literal["x", "y"], most: int) -> None:
    """Write a logarithmic axis with at most ``most`` plain numbers, as many as there can be."""
    low, high = sorted(axes.get_xlim() if of == "x" else axes.get_ylim())
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for steps in LOG_STEPS:
        ticks = [tick for decade in decades for step in steps if low <= (tick := step * 10.0**decade) <= high]
        if len(ticks) <= most:
            break
    if len(ticks) < 2:  # the axis is too short for round numbers of a decade
        ticks = [float(tick) for tick in MaxNLocator(most).tick_values(low, high) if low <= tick <= high]

    axis = axes.xaxis if of == "x" else axes.yaxis
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())
