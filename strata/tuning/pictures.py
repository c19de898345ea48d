"""The search as pictures: how fast it got better, and what each knob does by the model's belief."""

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from scipy.optimize import OptimizeResult
from skopt.plots import partial_dependence_1D, plot_convergence
from skopt.space import Categorical

from strata.pages.pictures import INK, SIZE, SOFT, png
from strata.tuning.search import WORST, Search

BEST = "#1b6b3f"
KINDS = {
    "params": ("params.yaml", "#c2702a"),
    "random": ("random", SOFT),
    "model": ("chosen by the model", "#2a6fc2"),
}
SAMPLES, POINTS = 200, 30  # of the other knobs, to average over; along a knob


def convergence(found: dict[str, Any]) -> bytes:
    """The best score after so many trials (skopt.plots), every trial's own, and where the model took over."""
    trials = found["trials"]
    scores = [WORST if trial["score"] is None else min(trial["score"], WORST) for trial in trials]

    def draw(axes: Axes) -> None:
        points = [list(trial["knobs"].values()) for trial in trials]
        plot_convergence(OptimizeResult(x_iters=points, func_vals=scores), ax=axes, yscale="log")
        for kind, (label, colour) in KINDS.items():
            chosen = [place for place, trial in enumerate(trials) if trial["kind"] == kind]
            if chosen:
                numbers, heights = [place + 1 for place in chosen], [scores[place] for place in chosen]
                axes.scatter(numbers, heights, s=14, c=colour, label=label, zorder=3)
        axes.set(title="", xlabel="trials", ylabel="held-out score, and the best so far")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _readable(axes)
        axes.legend(fontsize=8)

    return png(draw)


def dependence(found: dict[str, Any], search: Search) -> bytes | None:
    """What the score would be along each knob, averaged over the others, by the last model (skopt.plots), and the
    trials; None for a search without a model."""
    if search.model is None or not search.model.models:
        return None
    space, model = search.model.space, search.model.models[-1]
    samples = space.transform(space.rvs(SAMPLES, random_state=np.random.RandomState(0)))
    told = [math.exp(value) for _, value in search.told]
    best = search.told[found["best"]][0]

    def draw(*panels: Axes) -> None:
        for place, (axes, dimension) in enumerate(zip(panels, space.dimensions, strict=True)):
            values, predicted = partial_dependence_1D(space, model, place, samples, POINTS)
            of_trials = [point[place] for point, _ in search.told]
            if isinstance(dimension, Categorical):
                names = [str(value) for value in dimension.categories]
                where = {str(value): number for number, value in enumerate(dimension.categories)}
                axes.plot(values, np.exp(predicted), "s-", color=INK, lw=1)  # values: the categories' numbers
                axes.scatter([where[str(value)] for value in of_trials], told, s=12, c="#2a6fc2")
                axes.axvline(where[str(best[place])], color=BEST, ls="--", lw=1)
                axes.set_xticks(range(len(names)), names, rotation=20)
            else:
                axes.plot(values, np.exp(predicted), color=INK, lw=1.2)
                axes.scatter(of_trials, told, s=12, c="#2a6fc2", zorder=3)
                axes.axvline(best[place], color=BEST, ls="--", lw=1)
                if dimension.prior == "log-uniform":
                    axes.set_xscale("log")
            axes.set(xlabel=dimension.name, yscale="log")
            axes.grid(visible=True)
            _readable(axes)
        panels[0].set_ylabel("score: model (line) and trials")

    panels = len(space.dimensions)
    return png(draw, (max(SIZE[0], 2.4 * panels), SIZE[1]), panels=panels)


def _readable(axes: Axes) -> None:
    """Scores within one decade still have labels."""
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
