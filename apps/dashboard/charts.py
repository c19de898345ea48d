"""Draw tables as Altair charts. The browser draws them from data that the page carries, and fetches nothing."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd

from strata.families.pictures import GREY as REST
from strata.families.pictures import colours

alt.data_transformers.disable_max_rows()

HEIGHT = 360
BLUE, GREY, ORANGE = "#1f5fb4", "#9aa3b2", "#e08a1e"
NAMED = 9  # labels that get a colour of their own
OTHER = "other"
LEGEND = alt.Legend(orient="top", columns=3, labelLimit=260, title=None)  # at the side it would fill a phone
Chart = alt.Chart | alt.LayerChart | alt.FacetChart  # what altair calls the sum of charts


def few(labels: Sequence[str | None]) -> list[str]:
    """Keep the NAMED commonest labels, and call the rest "other"."""
    common = {label for label, _ in Counter(label for label in labels if label is not None).most_common(NAMED)}
    return [label if label is not None and label in common else OTHER for label in labels]


def points(
    frame: pd.DataFrame,
    colour: str,
    axes: tuple[str, str] | None = None,
    log: bool = False,
    order: Sequence[str] = (),
    height: int = 520,
) -> alt.Chart:
    """Scatter ``frame``'s columns x and y, coloured by ``colour``. The pointer shows the other columns of a point.

    Numbers get a scale of colours; texts get a colour each, those of ``order`` first, and "other" a grey. ``axes``: the
    names of x and y; None for a map, on which only nearness has a meaning. ``log``: a logarithmic scale of colours.
    """
    if pd.api.types.is_float_dtype(frame[colour]):
        scale = alt.Scale(scheme="viridis", type="symlog" if log else "linear")
        paint = alt.Color(f"{colour}:Q", scale=scale, legend=alt.Legend(orient="top", title=colour))
    else:
        shown = sorted(set(frame[colour].astype(str)))
        names = [name for name in dict.fromkeys([*order, *shown]) if name in shown and name != OTHER]
        domain = [*names, OTHER] if OTHER in shown else names
        scale = alt.Scale(domain=domain, range=[*colours(len(names)), REST])
        paint = alt.Color(f"{colour}:N", scale=scale, legend=LEGEND)
    x, y = (None, None) if axes is None else axes
    axis = alt.Axis(labels=False, ticks=False, grid=False) if axes is None else alt.Axis()

    return (
        alt.Chart(frame)
        .mark_circle(size=28, opacity=0.75)
        .encode(
            x=alt.X("x:Q", scale=alt.Scale(zero=False), title=x, axis=axis),
            y=alt.Y("y:Q", scale=alt.Scale(zero=False), title=y, axis=axis),
            color=paint,
            tooltip=_tips(frame.drop(columns=["x", "y"])),
        )
        .properties(height=height)
        .interactive()
    )


def dots(frame: pd.DataFrame, x: str, y: str) -> alt.Chart:
    """Draw a large point for each line of ``frame``. ``x``: a column of numbers or of names."""
    number = pd.api.types.is_numeric_dtype(frame[x])
    across = alt.X(field=_field(x), type="quantitative" if number else "nominal", title=x)
    return (
        alt.Chart(frame)
        .mark_circle(size=120, color=BLUE)
        .encode(
            x=across.scale(zero=False) if number else across,
            y=alt.Y(field=_field(y), type="quantitative", scale=alt.Scale(zero=False), title=y),
            tooltip=[alt.Tooltip(field=_field(name), title=name) for name in frame.columns],
        )
        .properties(height=HEIGHT)
    )


def _tips(frame: pd.DataFrame) -> list[alt.Tooltip]:
    """Show every column where the pointer is. Altair takes plain names too, but needs 5 ms for each."""
    return [alt.Tooltip(name) for name in frame.columns]


def _field(name: str) -> str:
    """Escape a column's name for Vega, which would take `train.k` for the field k of a record train."""
    return name.replace(".", "\\.")


def bars(frame: pd.DataFrame, x: str, y: str) -> alt.Chart:
    """Draw horizontal bars in the table's order. ``x``: the column of numbers; ``y``: of names."""
    return (
        alt.Chart(frame)
        .mark_bar(color=BLUE)
        .encode(
            x=alt.X(f"{x}:Q", title=x),
            y=alt.Y(f"{y}:N", sort=None, title=None, axis=alt.Axis(labelOverlap=False)),
            tooltip=_tips(frame),
        )
        .properties(height=20 * len(frame) + 60)  # the axis takes 60
    )


def histogram(frame: pd.DataFrame, title: str, log: bool = False) -> alt.Chart:
    """Draw what :func:`apps.dashboard.measures.histogram` counted. Kinds lie over each other."""
    kinds = list(dict.fromkeys(frame["kind"]))
    return (
        alt.Chart(frame)
        .mark_bar(opacity=0.6, binSpacing=0)
        .encode(
            x=alt.X("low:Q", bin="binned", title=title, scale=_scale(log)),
            x2=alt.X2("high:Q"),
            y=alt.Y("share:Q", stack=None, title="share", axis=alt.Axis(format="%")),
            color=alt.Color(
                "kind:N", scale=alt.Scale(domain=kinds, range=[BLUE, ORANGE][: len(kinds)]), title=None,
                legend=alt.Legend(orient="top") if len(kinds) > 1 else None,
            ),
            tooltip=_tips(frame[["kind", "low", "high", "share"]]),
        )
        .properties(height=HEIGHT)
    )  # fmt: skip


def line(
    frame: pd.DataFrame,
    x: str,
    y: str,
    colour: str | None = None,
    dash: str | None = None,
    log_x: bool = False,
    log_y: bool = False,
    height: int = HEIGHT,
) -> alt.Chart:
    """Draw one line, or a line for each value of the columns ``colour`` and ``dash``, which the legend names."""
    encoding: dict[str, Any] = {"color": alt.ColorValue(BLUE)}
    if colour:
        values = sorted(set(frame[colour].astype(str)), key=lambda value: (len(value), value))
        scale = alt.Scale(domain=values, range=colours(len(values)))
        encoding["color"] = alt.Color(f"{colour}:N", scale=scale, legend=alt.Legend(orient="top", labelLimit=260))
    if dash:
        encoding["strokeDash"] = alt.StrokeDash(f"{dash}:N", sort=None, legend=alt.Legend(orient="top", title=None))
    return (
        alt.Chart(frame)
        .mark_line()
        .encode(
            x=alt.X(f"{x}:Q", scale=_scale(log_x), title=x),
            y=alt.Y(f"{y}:Q", scale=_scale(log_y), title=y),
            tooltip=_tips(frame),
            **encoding,
        )
        .properties(height=height)
        .interactive()
    )


def _scale(log: bool) -> alt.Scale:
    """Return a logarithmic scale that ends where the data ends, or a linear one that need not begin at 0."""
    return alt.Scale(type="log", nice=False) if log else alt.Scale(zero=False)


def with_trend(dots: pd.DataFrame, trend: pd.DataFrame, x: str, y: str, log_x: bool) -> Chart:
    """Draw points, and over them the line of ``trend``, their means."""
    cloud = (
        alt.Chart(dots)
        .mark_circle(size=18, opacity=0.4, color=GREY)
        .encode(
            x=alt.X(f"{x}:Q", scale=_scale(log_x)),
            y=alt.Y(f"{y}:Q", scale=alt.Scale(zero=False)),
            tooltip=_tips(dots),
        )
    )
    mean = (
        alt.Chart(trend).mark_line(color=BLUE, strokeWidth=2.5).encode(x=alt.X("x:Q", title=x), y=alt.Y("y:Q", title=y))
    )
    return (cloud + mean).properties(height=HEIGHT)


def scree(frame: pd.DataFrame, mark: float) -> Chart:
    """Draw each component's share of the variance as a bar, the share up to it as a line, and a rule at ``mark``."""
    base = alt.Chart(frame).encode(
        x=alt.X("component:Q", title="principal component", scale=alt.Scale(nice=False)), tooltip=_tips(frame)
    )
    axis = alt.Axis(format="%")

    single = base.mark_bar(color=BLUE).encode(y=alt.Y("variance:Q", axis=axis, title="share of the variance"))
    total = base.mark_line(color=ORANGE, strokeWidth=2).encode(y=alt.Y("cumulative:Q", axis=axis))
    rule = alt.Chart(pd.DataFrame({"y": [mark]})).mark_rule(color=GREY, strokeDash=[4, 4]).encode(y=alt.Y("y:Q"))
    return (single + total + rule).properties(height=HEIGHT)


def band(frame: pd.DataFrame, x: str, y: str) -> Chart:
    """Draw a line in the band between the columns low and high."""
    base = alt.Chart(frame).encode(x=alt.X(f"{x}:Q", scale=alt.Scale(zero=False)), tooltip=_tips(frame))
    area = base.mark_area(color=BLUE, opacity=0.18).encode(y=alt.Y("low:Q", title=y), y2=alt.Y2("high:Q"))
    return (area + base.mark_line(color=BLUE, point=True).encode(y=alt.Y(f"{y}:Q"))).properties(height=HEIGHT)


def area(frame: pd.DataFrame, x: str, y: str, title: str, largest: float) -> alt.Chart:
    """Draw a small area under a line, as one of several whose scale goes to ``largest``."""
    return (
        alt.Chart(frame, title=alt.Title(title, fontSize=12, fontWeight="normal", anchor="start"))
        .mark_area(color=BLUE, line=True, opacity=0.35)
        .encode(x=alt.X(f"{x}:Q"), y=alt.Y(f"{y}:Q", scale=alt.Scale(domain=[0, largest])), tooltip=_tips(frame))
        .properties(height=150)
    )


def heatmap(frame: pd.DataFrame, value: str) -> Chart:
    """Draw a square for each pair of the columns one and other, coloured by ``value``."""
    across, down = alt.X("one:O", title="vector", axis=alt.Axis(labelAngle=0)), alt.Y("other:O", title="vector")
    base = alt.Chart(frame).encode(x=across, y=down, tooltip=_tips(frame))
    scale, legend = alt.Scale(scheme="blueorange", domain=[-1, 1]), alt.Legend(orient="top")
    paint = alt.Color(f"{value}:Q", scale=scale, title=value, legend=legend)
    return base.mark_rect().encode(color=paint).properties(height=380)
