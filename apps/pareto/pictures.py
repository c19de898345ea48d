"""Draw one layer's points as a picture."""

from collections.abc import Sequence
from functools import partial

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.lines import Line2D

from apps.pareto.points import COSTS, Point, front
from strata.pages.pictures import INK, SOFT, png

LABELS = {"fvu_inlier": "variance missed (fvu_inlier)", "delta_ce": "cost in cross-entropy, nats (delta_ce)"}


def picture(points: Sequence[Point]) -> bytes:
    """Draw a panel for each cost, as PNG. A line goes through the points of a curve; rings and a dashed line mark the
    front; an upright line goes from the smallest to the largest value of several seeds."""
    costs = [cost for cost in COSTS if any(point.costs[cost] is not None for point in points)]
    draw = partial(_panels, points, costs)
    return png(draw, (4.0 * len(costs), 3.1), panels=len(costs), apart=True, axes_grid=True)


def _panels(points: Sequence[Point], costs: Sequence[str], *panels: Axes) -> None:
    """Draw cost against l0, a panel for each of ``costs``."""
    curves = list(dict.fromkeys(point.curve for point in points))
    step = 0.82 / max(len(curves) - 1, 1)  # 1 would reach viridis's palest yellow, which vanishes on white
    colours = {curve: to_hex(colormaps["viridis"](place * step)) for place, curve in enumerate(curves)}

    for axes, cost in zip(panels, costs, strict=True):
        for curve, colour in colours.items():
            of_curve = [point for point in points if point.curve == curve]
            _plot(axes, of_curve, cost, color=colour, marker="o", ms=4, lw=1.2)
            for point in of_curve:
                if cost in point.bounds:
                    axes.vlines(point.l0, *point.bounds[cost], color=colour, lw=1)
        _plot(
            axes, front(points, cost), cost, color=SOFT, ls="--", lw=1, marker="o", ms=9, mfc="none", mec=INK, zorder=1
        )
        axes.set(xlabel="active latents a token (l0)", ylabel=LABELS[cost])
        axes.margins(0.08)

    lines = [Line2D([], [], color=colour, marker="o", ms=4, lw=1.2, label=curve) for curve, colour in colours.items()]
    ring = Line2D([], [], color=SOFT, ls="--", lw=1, marker="o", ms=9, mfc="none", mec=INK, label="front")
    panels[0].legend(handles=[*lines, ring])


def _plot(axes: Axes, points: Sequence[Point], cost: str, **style: object) -> None:
    """Draw a line through those of ``points`` whose cost is known."""
    known = [(point.l0, point.costs[cost]) for point in points if point.costs[cost] is not None]
    if known:
        axes.plot(*zip(*known, strict=True), **style)  # pyright: ignore[reportArgumentType]
