"""Draw the search: how fast it got better, and what each knob does according to the model."""

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from scipy.optimize import OptimizeResult
from skopt.plots import partial_dependence_1D, plot_convergence
from skopt.space import Categorical

from strata.pages.pictures import GREEN, INK, SIZE, SOFT, legend_above, log_ticks, png
from strata.tuning.search import WORST, Search

KINDS = {
    "params": ("params.yaml", "#c2702a"),
    "random": ("random", SOFT),
    "model": ("chosen by the model", "#2a6fc2"),
}
SAMPLES = 200  # points of the other knobs, over which a knob's dependence is averaged
POINTS = 30  # along each knob


def convergence(found: dict[str, Any]) -> bytes:
    """Draw the best score against the number of trials (skopt.plots), and each trial's own score, coloured by its kind.

    ``found``: the content of `trials.json`.
    """
    trials = found["trials"]
    scores = [WORST if trial["score"] is None else min(trial["score"], WORST) for trial in trials]

    def draw(axes: Axes) -> None:
        points = [list(trial["knobs"].values()) for trial in trials]
        plot_convergence(OptimizeResult(x_iters=points, func_vals=scores), ax=axes, yscale="log")
        for kind, (label, colour) in KINDS.items():
            of_kind = [index for index, trial in enumerate(trials) if trial["kind"] == kind]
            if of_kind:
                numbers, heights = [index + 1 for index in of_kind], [scores[index] for index in of_kind]
                axes.scatter(numbers, heights, s=14, c=colour, label=label, zorder=3)

        axes.set(title="", xlabel="trials", ylabel="held-out score")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        log_ticks(axes, "y", most=7)
        legend_above(axes, axes.get_legend_handles_labels()[0], columns=2)

    return png(draw)


def dependence(found: dict[str, Any], search: Search) -> bytes | None:
    """Draw the score along each knob, averaged over the others, as the last model predicts it, and the trials.

    The prediction is skopt.plots' partial dependence. ``found``: the content of `trials.json`. Returns None for a
    search without a model.
    """
    if search.model is None or not search.model.models:
        return None

    space, model = search.model.space, search.model.models[-1]
    samples = space.transform(space.rvs(SAMPLES, random_state=np.random.RandomState(0)))
    scores = [math.exp(log_score) for _, log_score in search.told]
    best = search.told[found["best"]][0]

    def draw(*panels: Axes) -> None:
        for index, (axes, dimension) in enumerate(zip(panels, space.dimensions, strict=True)):
            values, predicted = partial_dependence_1D(space, model, index, samples, POINTS)
            tried = [point[index] for point, _ in search.told]
            if isinstance(dimension, Categorical):
                names = [str(value) for value in dimension.categories]
                number_of = {str(value): number for number, value in enumerate(dimension.categories)}
                axes.plot(values, np.exp(predicted), "s-", color=INK, lw=1)  # values are numbers of categories
                axes.scatter([number_of[str(value)] for value in tried], scores, s=12, c="#2a6fc2")
                axes.axvline(number_of[str(best[index])], color=GREEN, ls="--", lw=1)
                axes.set_xticks(range(len(names)), names, rotation=20)
            else:
                axes.plot(values, np.exp(predicted), color=INK, lw=1.2)
                axes.scatter(tried, scores, s=12, c="#2a6fc2", zorder=3)
                axes.axvline(best[index], color=GREEN, ls="--", lw=1)
                if dimension.prior == "log-uniform":
                    axes.set_xscale("log")
                    log_ticks(axes, "x", most=4)

            axes.set(xlabel=dimension.name, yscale="log")
            axes.grid(visible=True)
            log_ticks(axes, "y", most=7)
        panels[0].set_ylabel("score: model (line) and trials")

    panels = len(space.dimensions)
    return png(draw, (max(SIZE[0], 2.4 * panels), SIZE[1]), panels=panels)
