"""The interactive map: one HTML file that needs no network. Texts are data in it, never markup."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strata.families.pictures import colours
from strata.interpretation.read import Latents
from strata.pages.readable import explained, inert
from strata.pages.templates import environment

LONGEST = 240  # characters of an explanation
NEAREST = 8  # neighbours of a latent


def render(
    latents: Latents,
    living: NDArray[np.int64],
    labels: NDArray[np.int64],
    places: NDArray[Any],
    families: Mapping[str, Any],
    coloured: Sequence[int],
    selected: Sequence[int],
) -> str:
    """Render the map of a layer as HTML.

    ``living``: (n,) the latents on it; ``labels``: (n,) the cluster of each; ``places``: (n, 2) where it stands.
    ``families``: the columns of `clusters.parquet`. ``coloured``: the clusters that have a colour, the best first.
    ``selected``: the latents that later stages work on.
    """
    names = latents.names()

    # Into the unit square, with y downwards as browsers draw.
    low, high = places.min(0), places.max(0)
    unit = (places - low) / max(float((high - low).max()), 1e-12)
    data = {
        "layer": latents.meta["layer"],
        "id": living.tolist(),
        "cluster": labels.tolist(),
        "x": np.round(unit[:, 0].astype(float), 4).tolist(),
        "y": np.round(1 - unit[:, 1].astype(float), 4).tolist(),
        "text": [_short(names.get(latent, "")) for latent in living.tolist()],
        **_numbers(latents, living),
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
        .render(meta=latents.meta, data=inert(data), count=len(data["names"]))
    )


def _numbers(latents: Latents, living: NDArray[np.int64]) -> dict[str, list[Any]]:
    """Return what points are coloured by, in the order of ``living``: ``density``; ``score``, the balanced accuracy of
    the best explanation or None; ``near`` and ``cosine``, the nearest latents and their cosines.
    """
    statistics, explanations = latents.table("statistics", ["density"]), latents.table("explanations")
    assert statistics is not None, "interpret always writes it"
    density = statistics["density"].to_numpy()[living]
    notes = explained(explanations.to_pylist() if explanations else [])
    scores = [notes[latent][0]["balanced_accuracy"] if latent in notes else None for latent in living.tolist()]

    table = latents.table("neighbours", filters=[("rank", "<", NEAREST)])
    nearest: dict[int, list[tuple[int, float]]] = {}
    for row in [] if table is None else table.to_pylist():
        nearest.setdefault(row["latent"], []).append((row["neighbour"], round(row["cosine"], 2)))
    pairs = [nearest.get(latent, []) for latent in living.tolist()]
    return {
        "density": [float(f"{value:.4g}") for value in density.tolist()],
        "score": [None if score is None else round(score, 4) for score in scores],
        "near": [[neighbour for neighbour, _ in near] for near in pairs],
        "cosine": [[cosine for _, cosine in near] for near in pairs],
    }


def _short(text: str) -> str:
    """Cut ``text`` to LONGEST characters."""
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
