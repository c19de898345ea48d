"""What cluster found of a layer, as the report shows it."""

import json
from typing import Any, NamedTuple

from strata.families.read import Clusters

PAGES = '<script type="application/json" id="pages">[]</script>'  # where the map is told which latents have a page


class Families(NamedTuple):
    """``numbers``: what cluster measured. ``picture``: the map as PNG; ``page``: as a page, without its links."""

    layer: int
    numbers: dict[str, Any]
    picture: bytes
    page: str


def read_families(clusters: Clusters, numbers: dict[str, Any]) -> Families:
    """Open a layer's maps."""
    picture, page = (clusters.folder / name for name in ("map.png", "map.html"))
    return Families(clusters.meta["layer"], numbers, picture.read_bytes(), page.read_text(encoding="utf-8"))


def linked(page: str, ids: list[int]) -> str:
    """The map, its latents linked to their pages, which stand in the same folder."""
    return page.replace(PAGES, PAGES.replace("[]", json.dumps(ids)), 1)
