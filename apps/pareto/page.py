"""Lay the pictures and their numbers out as one self-contained file of HTML."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

from apps.pareto.points import COSTS, NEAR, Point, by_layer, rows, shortest
from strata.pages.readable import percent
from strata.pages.templates import environment


def render(points: Sequence[Point], pictures: Mapping[int, bytes]) -> str:
    """Return the page. ``pictures``: layer -> PNG."""
    lines = rows(points)
    templates = environment(Path(__file__).parent, shortest=shortest, percent=percent)
    return templates.get_template("pareto.html.j2").render(
        layers={layer: [line for line in lines if line["layer"] == layer] for layer in by_layer(points)},
        pictures={layer: base64.b64encode(png).decode() for layer, png in pictures.items()},
        knobs=list(points[0].knobs),
        near=NEAR,
        seeds=any(point.bounds for point in points),
        costs=[cost for cost in COSTS if any(point.costs[cost] is not None for point in points)],
    )
