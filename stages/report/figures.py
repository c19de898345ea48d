"""The report's pictures, as PNG."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from stages.report.evaluated import accuracies
from stages.report.findings import Findings
from stages.report.results import Merged
from stages.report.stability import likeness
from stages.train.read import History, Result
from strata.pages.pictures import INK, png
from strata.verdict.targets import Bound, Targets

PASSING = "#e0f2e6"
LINES = {"merged": "-", "refitted": "--", "dropped": ":"}  # how a layer's curves of merging are drawn
CURVES = {"fvu": "fvu", "l0": "active latents a token (l0)", "dead": "share of dead latents"}

Colours = Mapping[int, str]  # layer -> colour


def figures(findings: Findings) -> dict[str, bytes]:
    """Draw every picture of the report. Return the name of its file -> PNG."""
    results, bounds = findings.results, findings.targets.bounds
    colours = _colours([result.layer for result in results])
    pictures: dict[str, bytes] = {}

    # An SAE that was given, not trained, has no history to draw.
    if any(findings.histories.values()):
        for metric in CURVES:
            pictures[metric] = _png(partial(_curve, findings.histories, colours, metric, bounds.get(metric)))
    pictures["density"] = _png(partial(_density, results, colours))
    pictures["controls"] = _png(partial(_controls, results, colours, findings.targets))

    if any(layer.curve for layer in findings.merged):
        pictures["merge"] = _png(partial(_merging, findings.merged, colours))
    if stability := likeness(findings.measured["stability"], colours):
        pictures["stability"] = stability
    if probing := accuracies(findings.evaluated, colours):
        pictures["probing"] = probing
    return pictures | findings.causes.pictures()


def headline(results: list[Result]) -> str:
    """Return the metric that says most: the cost in cross-entropy or, without a language model, the variance missed."""
    return "fvu_inlier" if results[0].test["delta_ce"] is None else "delta_ce"


def _png(draw: Callable[[Axes], None]) -> bytes:
    return png(draw, axes_grid=True)


def _colours(layers: list[int]) -> Colours:
    """Give each layer a colour, from dark to light with its depth."""
    step = 0.82 / max(len(layers) - 1, 1)  # 1 would reach viridis's palest yellow, which vanishes on white
    return {layer: to_hex(colormaps["viridis"](place * step)) for place, layer in enumerate(layers)}


def _legend(axes: Axes, colours: Colours, *more: Line2D) -> None:
    """Name the layers, then what ``more`` lines stand for."""
    lines = [Line2D([], [], color=colour, label=f"layer {layer}") for layer, colour in colours.items()]
    axes.legend(handles=[*lines, *more], ncols=2 if len(lines) > 6 else 1)


def _band(axes: Axes, bound: Bound | None) -> None:
    """Shade green where a metric passes its target, and make room for the target on the y axis."""
    if bound is None:
        return

    low, high = axes.get_ylim()
    if bound.min is not None:
        low = min(low, bound.min)
    if bound.max is not None:
        high = max(high, bound.max * 1.05)
    axes.set_ylim(low, high)

    bottom = low if bound.min is None else bound.min
    top = high if bound.max is None else bound.max
    axes.axhspan(bottom, top, color=PASSING, zorder=0)


def _curve(histories: Mapping[int, History], colours: Colours, metric: str, bound: Bound | None, axes: Axes) -> None:
    """Draw a metric over the tokens seen: training as a line, validation as dots."""
    for layer, history in histories.items():
        axes.plot(*_points(history, metric), color=colours[layer], lw=1.1)
        axes.plot(*_points(history, f"validation_{metric}"), color=colours[layer], marker="o", ms=3, ls=":")

    axes.set(xlabel="million tokens seen", ylabel=CURVES[metric])
    if metric == "fvu":
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    _band(axes, bound)

    training = Line2D([], [], color=INK, lw=1.1, label="train")
    validation = Line2D([], [], color=INK, marker="o", ms=3, ls=":", label="validation")
    _legend(axes, colours, training, validation)


def _points(history: History, column: str) -> tuple[list[float], list[float]]:
    """Return the millions of tokens and the values of a column, at the logging points that have one."""
    rows = [row for row in history if column in row]
    return [row["tokens"] / 1e6 for row in rows], [row[column] for row in rows]


def _density(results: list[Result], colours: Colours, axes: Axes) -> None:
    """Draw how often latents fire. A hump near k/latents is healthy; a second one far left is nearly dead latents."""
    for result in results:
        share = [count / result.latents for count in result.density.counts]
        axes.stairs(share, result.density.log10_edges, color=colours[result.layer], fill=True, alpha=0.12)
        axes.stairs(share, result.density.log10_edges, color=colours[result.layer], lw=1.2)

    axes.xaxis.set_major_formatter(lambda exponent, _: f"$10^{{{exponent:g}}}$")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="share of tokens on which a latent fires", ylabel="share of latents")
    _legend(axes, colours)


def _merging(merged: Sequence[Merged], colours: Colours, axes: Axes) -> None:
    """Draw fvu against the size of the dictionary, by layer. A dot is the dictionary before merging."""
    drawn = []
    for layer in merged:
        if (fvu_before := layer.test["before"]["fvu"]) is not None:
            axes.plot([layer.living], [fvu_before], color=colours[layer.layer], marker="o", ms=4)

        for name, style in LINES.items():
            points = sorted((point.latents, point.fvu) for point in layer.curve if point.line == name)
            if points:
                drawn.append(name)
                latents, fvu = zip(*points, strict=True)
                axes.plot(latents, fvu, color=colours[layer.layer], lw=1.2, ls=style, marker=".", ms=3)

    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="latents", ylabel="fvu")
    styles = [Line2D([], [], color=INK, lw=1.2, ls=LINES[name], label=name) for name in LINES if name in drawn]
    _legend(axes, colours, *styles)


def _controls(results: list[Result], colours: Colours, targets: Targets, axes: Axes) -> None:
    """Draw the headline metric of every SAE beside its controls: a group of bars for each, a bar for each layer."""
    metric = headline(results)
    names = ["SAE", *results[0].controls]
    height = 0.8 / len(results)  # of a bar; the groups are 1 apart

    for place, result in enumerate(results):
        values = [result.test[metric], *(control[metric] for control in result.controls.values())]
        y = [group + (place + 0.5) * height - 0.4 for group in range(len(names))]
        bars = axes.barh(y, [value or 0.0 for value in values], height * 0.9, color=colours[result.layer])
        axes.bar_label(bars, [f" {value:.3g}" if value is not None else " –" for value in values], fontsize=7)

    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.12)
    axes.set(xlabel="delta_ce in nats" if metric == "delta_ce" else metric)
    if (bound := targets.bounds.get(metric)) is not None and bound.max is not None:
        axes.axvline(bound.max, color="#2e7d4f", lw=1, ls="--")
    _legend(axes, colours)
