"""The interactive map: one HTML file that needs no network. Texts are data in it, never markup."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strata.families.pictures import colours
from strata.pages.readable import inert
from strata.pages.templates import environment

LONGEST = 240  # characters of an explanation


def render(
    meta: Mapping[str, Any],
    living: NDArray[np.int64],
    labels: NDArray[np.int64],
    places: NDArray[Any],
    families: Mapping[str, Any],
    coloured: Sequence[int],
    names: Mapping[int, str],
    selected: Sequence[int],
) -> str:
    """Render the map of a layer as HTML.

    ``living``: (n,) the latents on it; ``labels``: (n,) the cluster of each; ``places``: (n, 2) where it stands.
    ``families``: the columns of `clusters.parquet`. ``coloured``: the clusters that have a colour, the best first.
    ``names``: latent -> its name, if it has one. ``selected``: the latents that later stages work on.
    """
    # Into the unit square, with y downwards as browsers draw.
    low, high = places.min(0), places.max(0)
    unit = (places - low) / max(float((high - low).max()), 1e-12)
    data = {
        "id": living.tolist(),
        "cluster": labels.tolist(),
        "x": np.round(unit[:, 0].astype(float), 4).tolist(),
        "y": np.round(1 - unit[:, 1].astype(float), 4).tolist(),
        "text": [_short(names.get(latent, "")) for latent in living.tolist()],
        "selected": list(selected),
        "names": list(families["name"]),
        "sizes": np.asarray(families["size"]).tolist(),
        "medoids": np.asarray(families["medoid"]).tolist(),
        "coloured": list(coloured),
        "colours": colours(len(coloured)),
    }

    return (
        environment(Path(__file__).parent)
        .get_template("map.html.j2")
        .render(meta=meta, data=inert(data), count=len(data["names"]))
    )


def _short(text: str) -> str:
    """Cut ``text`` to LONGEST characters."""
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
