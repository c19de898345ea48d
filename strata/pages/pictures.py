"""Pictures as PNG bytes. They hold no time, version or path, so that the same picture has the same bytes."""

from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

INK, SOFT, FAINT = "#3b4252", "#9aa3b2", "#e1e5ec"
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
    "legend.fontsize": 8,
}
SIZE = 4.0, 2.9  # inches: in a column of 350 CSS pixels, as on a phone, the text is still 11 pixels high


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
