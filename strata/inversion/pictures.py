"""Draw a layer's inverted latents, as PNG."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.font_manager import findfont, get_font

from strata.pages.pictures import INK, SOFT, png

COLOURS = {"greedy": "#2f6db3", "soft": "#c2703d", "random": SOFT}
LENGTH = 11  # characters of a token that fit into its cell
TOKENS: dict[str, Any] = {"font_size": 8, "text_parse_math": False}  # how tokens are written
Row = dict[str, Any]
Draw = Callable[[Axes], None]


def drawable(text: str) -> str:
    """Replace each character that the pictures' font lacks by a box."""
    known = get_font(findfont("DejaVu Sans")).get_charmap()
    return "".join(sign if sign.isprintable() and ord(sign) in known else "□" for sign in text)


def heatmap(rows: Sequence[Row]) -> bytes:
    """Draw what :func:`tokens` says, as PNG."""
    draw, size = tokens(rows)
    return png(draw, size, 200, **TOKENS)


def curves(found: Sequence[Row]) -> bytes:
    """Draw what :func:`searches` says, as PNG."""
    return png(searches(found))


def tokens(rows: Sequence[Row]) -> tuple[Draw, tuple[float, float]]:
    """How to draw a row for each latent: the tokens of its best prompt, coloured by activation over corpus maximum.

    ``rows``: as `invert.summary` makes them. Returns what draws it, and its size in inches.
    """
    width = max((len(row["values"]) for row in rows), default=1)
    shares = np.full((max(1, len(rows)), width), np.nan)
    for number, row in enumerate(rows):
        shares[number, : len(row["values"])] = np.array(row["values"]) / row["corpus_max"]
    top = max(1.0, float(np.nanmax(shares, initial=1.0)))

    def draw(axes: Axes) -> None:
        image = axes.imshow(shares, aspect="auto", cmap="Blues", vmin=0, vmax=top, interpolation="nearest")
        for number, row in enumerate(rows):
            for position, piece in enumerate(row["pieces"]):
                text = drawable(piece.strip() or "␣")
                text = text if len(text) <= LENGTH else text[: LENGTH - 1] + "…"
                colour = "white" if shares[number, position] > 0.55 * top else INK
                axes.text(position, number, text, ha="center", va="center", fontsize=6, color=colour)

        names = [f"{row['latent']}: {row['activation']:.0f}, {row['ratio']:.2f} × corpus" for row in rows]
        axes.set_yticks(range(len(rows)), names)
        axes.set(xlabel="token of the best prompt", xticks=range(width))
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        assert axes.figure is not None
        axes.figure.colorbar(image, ax=axes, label="activation / corpus maximum", pad=0.01, fraction=0.02)

    return draw, (2.4 + 0.62 * width, 1.2 + 0.3 * len(rows))


def searches(found: Sequence[Row]) -> Draw:
    """How to draw the best activation so far against model calls: a faint line for each latent, a strong one for the
    median.

    ``found``: a row for each latent with its ``curves`` and ``corpus_max``, as `invert.one` makes it, or `report`.
    """

    def draw(axes: Axes) -> None:
        for method, colour in COLOURS.items():
            lines = [_line(row, method) for row in found]
            lines = [line for line in lines if len(line)]
            for line in lines:
                axes.step(*line.T, where="post", color=colour, linewidth=0.6, alpha=0.35)
            if lines:
                # The median over all latents, from where each of them has a value.
                calls = np.unique(np.concatenate([line[:, 0] for line in lines]))
                calls = calls[calls >= max(line[0, 0] for line in lines)]
                heights = [line[np.searchsorted(line[:, 0], calls, side="right") - 1, 1] for line in lines]
                axes.step(calls, np.median(heights, axis=0), where="post", color=colour, label=method)

        axes.axhline(1, color=INK, linewidth=0.8, linestyle=":", label="corpus")
        axes.set(xlabel="model calls", ylabel="activation / corpus maximum", ylim=(0, None))
        axes.grid(axis="y")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, handlelength=1.2, columnspacing=1)

    return draw


def _line(row: Row, method: str) -> Any:
    """Return the curve of one method, (points, 2): calls, and activation over corpus maximum."""
    points = [
        (point["calls"], point["activation"] / row["corpus_max"])
        for point in row["curves"]
        if point["method"] == method
    ]
    return np.array(points).reshape(-1, 2)
