"""The report's pictures, as PNG."""

from collections.abc import Mapping
from functools import partial

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from stages.report.evaluated import accuracies
from stages.report.findings import Findings
from stages.report.results import Merged
from stages.report.scorecard import worded
from stages.report.stability import likeness
from stages.train.read import History, Result
from strata.pages.pictures import GREEN, KINDS, SIZE, label_ends, legend_above, log_ticks, png
from strata.pages.readable import number
from strata.verdict.targets import Bound, Targets

LINES = dict(zip(("merged", "refitted", "dropped"), KINDS, strict=False))  # line of merging's curve -> its colour
CURVES = {"fvu": "fvu", "l0": "active latents a token (l0)", "dead": "share of dead latents"}
LEVEL = 0.02  # a curve that moves by no larger share of itself is not drawn: it says nothing
ROW = 0.19  # inches of a bar and its number

Colours = Mapping[int, str]  # layer -> colour


def figures(findings: Findings) -> dict[str, bytes]:
    """Draw every picture of the report. Return the name of its file -> PNG."""
    results, bounds = findings.results, findings.targets.bounds
    colours = _colours([result.layer for result in results])
    pictures: dict[str, bytes] = {}

    # An SAE that was given, not trained, has no history to draw.
    if any(findings.histories.values()):
        for metric in CURVES:
            if not _level(findings.histories, metric):
                draw = partial(_curve, findings.histories, colours, metric, bounds.get(metric))
                pictures[metric] = png(draw, axes_grid=True)
    pictures["density"] = png(partial(_density, results, colours), axes_grid=True)

    bars = len(results) * (1 + len(results[0].controls))
    size = (SIZE[0], max(SIZE[1], 0.6 + ROW * bars))
    pictures["controls"] = png(partial(_controls, results, colours, findings.targets), size, axes_grid=True)

    for merged in findings.merged:
        if merged.curve:
            pictures[f"merge-{merged.layer}"] = png(partial(_merging, merged), axes_grid=True)
    if stability := likeness(findings.measured["stability"], colours):
        pictures["stability"] = stability
    return pictures | accuracies(findings.evaluated) | findings.causes.pictures()


def headline(results: list[Result]) -> str:
    """Return the metric that says most: the cost in cross-entropy or, without a language model, the variance missed."""
    return "fvu_inlier" if results[0].test["delta_ce"] is None else "delta_ce"


def _colours(layers: list[int]) -> Colours:
    """Give each layer a colour, from dark to light with its depth, which the colour-blind see, too."""
    step = 0.6 / max(len(layers) - 1, 1)  # 1 would reach plasma's yellow, which vanishes on white
    return {layer: to_hex(colormaps["plasma"](place * step)) for place, layer in enumerate(layers)}


def _level(histories: Mapping[int, History], metric: str) -> bool:
    """Say if a metric stays what it was all the way, as l0 does under a rule that fixes it."""
    for history in histories.values():
        values = [row[name] for row in history for name in (metric, f"validation_{metric}") if name in row]
        if values and max(values) - min(values) > LEVEL * abs(max(values)):
            return False
    return True


def _bound(axes: Axes, bound: Bound | None) -> None:
    """Say above the picture what the target is, and draw its ends where they lie within; no room is made for them."""
    if bound is None:
        return

    low, high = axes.get_ylim()
    for end in (bound.min, bound.max):
        if end is not None and low <= end <= high:
            axes.axhline(end, color=GREEN, lw=1, ls="--", zorder=0.5)
    axes.set_title(f"target: {worded(bound.min, bound.max)}", color=GREEN, loc="left")


def _curve(histories: Mapping[int, History], colours: Colours, metric: str, bound: Bound | None, axes: Axes) -> None:
    """Draw a metric over the tokens seen: training as a line, validation as dots."""
    ends = []
    for layer, history in histories.items():
        tokens, values = _points(history, metric)
        axes.plot(tokens, values, color=colours[layer], lw=1.1)
        axes.plot(*_points(history, f"validation_{metric}"), color=colours[layer], marker="o", ms=3, ls=":", lw=0.8)
        if values:
            ends.append((values[-1], f"layer {layer}", colours[layer]))

    axes.set(xlabel="million tokens seen", ylabel=CURVES[metric])
    axes.xaxis.set_major_locator(MaxNLocator(6))
    if metric == "fvu":
        axes.set_yscale("log")
        log_ticks(axes, "y", most=7)
    _bound(axes, bound)
    label_ends(axes, ends)


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

    axes.xaxis.set_major_formatter(lambda exponent, _: f"{100 * 10**exponent:g} %")
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.set(xlabel="share of tokens on which a latent fires", ylabel="share of latents")
    legend_above(axes, [Line2D([], [], color=colour, label=f"layer {layer}") for layer, colour in colours.items()], 4)


def _merging(merged: Merged, axes: Axes) -> None:
    """Draw fvu against the size of a layer's dictionary. A dot is the dictionary before merging."""
    if (fvu_before := merged.test["before"]["fvu"]) is not None:
        axes.plot([merged.living], [fvu_before], color="black", marker="o", ms=4)

    ends = []
    for name, colour in LINES.items():
        points = sorted((point.latents, point.fvu) for point in merged.curve if point.line == name)
        if points:
            latents, fvu = zip(*points, strict=True)
            axes.plot(latents, fvu, color=colour, lw=1.2, marker=".", ms=4)
            ends.append((fvu[0], name, colour))

    # The fewer the latents, the further apart the lines: so the small dictionaries stand on the right, at the names.
    axes.set_xscale("log", base=2)
    axes.invert_xaxis()
    log_ticks(axes, "x", most=4)
    axes.set(xlabel="latents, from many to few", ylabel="fvu")
    label_ends(axes, ends)


def _controls(results: list[Result], colours: Colours, targets: Targets, axes: Axes) -> None:
    """Draw the headline metric of every SAE beside its controls: a group of bars for each, a bar for each layer."""
    metric = headline(results)
    bars = [
        (name, result.layer, (result.test if name == "SAE" else result.controls[name])[metric])
        for name in ("SAE", *results[0].controls)
        for result in results
    ]
    axes.barh(range(len(bars)), [value or 0.0 for *_, value in bars], 0.8, color=[colours[at] for _, at, _ in bars])

    # The name of a group stands at its first bar; the numbers stand beside the picture, where no line crosses them.
    first = results[0].layer
    axes.set_yticks(
        range(len(bars)), [f"{name}, layer {layer}" if layer == first else f"layer {layer}" for name, layer, _ in bars]
    )
    for place, (name, _, value) in enumerate(bars):
        weight = "bold" if name == "SAE" else "normal"
        axes.text(1.02, place, number(value), va="center", transform=axes.get_yaxis_transform(), weight=weight)

    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="delta_ce in nats" if metric == "delta_ce" else metric)
    if (bound := targets.bounds.get(metric)) is not None and bound.max is not None:
        axes.axvline(bound.max, color=GREEN, lw=1, ls="--")
        axes.set_title(f"target: {worded(bound.min, bound.max)}", color=GREEN, loc="left")
