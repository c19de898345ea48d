"""Figures of what the other calls give; each is a matplotlib Figure, which a notebook shows."""

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from strata.front.latents import Latents
from strata.front.prompts import Inverted
from strata.inversion import invert, pictures
from strata.notebook import BLUE, compared, curves, densities, figure
from strata.pages.pictures import INK, STYLE, drawn
from strata.run import door

__all__ = ["compared", "curves", "densities", "histogram", "importance", "prompts", "searches"]

LATENTS = "it must be what strata.latents gives"
INVERTED = "it must be what strata.invert gives"


def histogram(found: Latents, latent: int) -> Figure:
    """How often a latent has which code, on the tokens where it is active."""
    door.of_kind("found", found, Latents, LATENTS)
    door.whole("latent", latent, 0, len(found) - 1)
    counts = np.asarray(found.table["histogram"].iloc[latent])
    edges = np.asarray(found.opened.meta["histogram_edges"])
    last = int(np.flatnonzero(counts).max(initial=0)) + 1

    def draw(axes: Axes) -> None:
        axes.bar(edges[:last], counts[:last], np.diff(edges)[:last], align="edge", color=BLUE)
        axes.set(xlabel=f"code of latent {latent}", ylabel="tokens", title=found.table["explanation"].iloc[latent][:60])

    return figure(draw)


def importance(found: Latents, most: int = 20) -> Figure:
    """The most important latents: density × mean code where active × norm of the decoder row, as a share of the
    largest."""
    door.of_kind("found", found, Latents, LATENTS)
    door.whole("most", most, 1)
    top = found.table.nlargest(most, "importance").iloc[::-1]
    names = [f"{latent}  {text[:40]}" for latent, text in zip(top["latent"], top["explanation"], strict=True)]

    def draw(axes: Axes) -> None:
        axes.barh(names, top["importance"], color=BLUE)
        axes.tick_params(axis="y", colors=INK)
        axes.set(xlabel="importance")

    return figure(draw, height=0.6 + 0.22 * len(top))


def searches(found: Inverted) -> Figure:
    """The best activation so far by calls of the model: a faint line a latent, a strong one their median.

    Activations are shares of the largest one in the texts, which is at 1.
    """
    door.of_kind("found", found, Inverted, INVERTED)
    return figure(pictures.searches(found.rows))


def prompts(found: Inverted) -> Figure:
    """The tokens of the best prompt of each latent, coloured by how strongly it fires there."""
    door.of_kind("found", found, Inverted, INVERTED)
    draw, size = pictures.tokens([invert.summary(row) for row in found.rows])
    with rc_context({**STYLE, "font.size": 8, "text.parse_math": False}):
        return drawn(draw, size)
