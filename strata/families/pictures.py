"""Draw the maps and heatmaps, as PNG."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm, to_hex
from numpy.typing import NDArray

from strata.pages.pictures import INK, png

GREY = "#c3cad6"  # for points that belong to no group with a colour
COLOURS = [to_hex(colour) for colour in colormaps["tab20"].colors[::2] + colormaps["tab20"].colors[1::2]]  # pyright: ignore[reportAttributeAccessIssue]
Floats = NDArray[Any]


def colours(count: int) -> list[str]:
    """Give ``count`` colours that can be told apart, at most 20."""
    return COLOURS[:count]


def clearest(families: Mapping[str, Any]) -> NDArray[np.int64]:
    """Return the clusters, those first that a map colours first: the clear and interesting ones, by
    silhouette × ln(size) × (1 + interest / the largest interest).

    ``families``: columns of `clusters.parquet`, in the order of their numbers.
    """
    interest = np.asarray(families["interest"])
    clearness = np.nan_to_num(families["silhouette"]) * np.log(families["size"])
    clearness *= 1 + interest / max(float(interest.max(initial=0)), 1e-12)
    return np.lexsort((families["cluster"], -clearness))


def short(text: str, length: int) -> str:
    """Cut ``text`` to ``length`` characters; one that the font cannot draw becomes a box."""
    text = "".join(sign if sign.isprintable() and ord(sign) < 0x2E80 else "□" for sign in text)
    return text if len(text) <= length else text[: length - 1] + "…"


def scatter(places: Floats, groups: Sequence[NDArray[Any]], titles: Sequence[str], rest: str, stars: Floats) -> bytes:
    """Draw points: some ``groups`` in colour with their titles beside the picture, all others grey.

    ``places``: (point, 2). ``groups``: the numbers of the points of each group. ``rest``: the title of the grey points.
    ``stars``: (star, 2) places that get a ring.
    """

    def draw(axes: Axes) -> None:
        grey = np.ones(len(places), bool)
        for members in groups:
            grey[members] = False
        axes.scatter(*places[grey].T, s=3, color=GREY, linewidths=0, label=rest)
        for colour, members, title in zip(colours(len(groups)), groups, titles, strict=True):
            axes.scatter(*places[members].T, s=11, color=colour, linewidths=0, label=short(title, 44))
        if len(stars):
            axes.scatter(*stars.T, s=42, facecolors="none", edgecolors=INK, linewidths=0.8, label="selected")

        axes.set(xticks=[], yticks=[])
        axes.set_aspect("equal", adjustable="datalim")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=1.6, labelspacing=0.6)
        axes.spines[:].set_visible(False)

    return _png(draw, (8.0, 5.0))


def heatmap(values: Floats, rows: Sequence[str], columns: Sequence[str | None], what: str) -> bytes:
    """Draw ``values`` (row, document), each row in shares of its largest value.

    ``rows``: the title of each row. ``columns``: the label of each document; equal labels stand together. ``what``: the
    label of the colour bar.
    """

    def draw(axes: Axes) -> None:
        largest = values.max(1, keepdims=True)
        image = axes.imshow(
            values / np.where(largest > 0, largest, 1),
            aspect="auto",
            cmap="viridis",
            norm=PowerNorm(0.5, 0, 1),
            interpolation="nearest",
        )
        axes.set_yticks(range(len(rows)), [short(row, 40) for row in rows], fontsize=6)

        # One tick in the middle of each run of documents with the same label, if the run is wide enough for a text.
        ends = np.flatnonzero([a != b for a, b in pairwise(columns)]) + 1
        edges = np.concatenate([[0], ends, [len(columns)]])
        wide = [(a, b) for a, b in pairwise(edges) if b - a >= max(2, len(columns) / 60)]
        axes.set_xticks([(a + b - 1) / 2 for a, b in wide], [short(columns[a] or "–", 24) for a, _ in wide], fontsize=6)

        axes.tick_params(axis="x", rotation=90)
        axes.tick_params(length=2)
        axes.set(xlabel="documents, by label")
        assert axes.figure is not None
        axes.figure.colorbar(image, ax=axes, label=what, pad=0.01, fraction=0.02)

    return _png(draw, (9.0, 2.2 + 0.115 * len(rows)))


def label_groups(labels: Sequence[str | None], most: int) -> tuple[list[NDArray[Any]], list[str]]:
    """Group documents by label: the documents of each of the ``most`` commonest labels, and these labels.

    ``labels``: one for each document, or None.
    """
    counts = Counter(label for label in labels if label is not None)
    names = sorted(counts, key=lambda label: (-counts[label], label))[:most]
    return [np.array([place for place, label in enumerate(labels) if label == name]) for name in names], names


def _png(draw: Any, size: tuple[float, float]) -> bytes:
    # A token may hold dollar signs, which must not be read as a formula.
    return png(draw, size, 200, font_size=8, legend_fontsize=7.5, text_parse_math=False)
