"""Show the families of latents that cluster found in a layer."""

import json
from typing import Any, NamedTuple

from strata.families.read import Clusters
from strata.pages.readable import inert

PAGES = '<script type="application/json" id="pages">[]</script>'  # where the map is told which latents have a page,
RENAMED = '<script type="application/json" id="renamed">{}</script>'  # and which have a name by explain, not by a rule


class Families(NamedTuple):
    """A layer's families. ``numbers``: what cluster measured. ``picture``: the map as PNG. ``page``: the map as HTML,
    whose latents do not link to their pages yet."""

    layer: int
    numbers: dict[str, Any]
    picture: bytes
    page: str


def read_families(clusters: Clusters, numbers: dict[str, Any]) -> Families:
    """Read a layer's maps."""
    picture, page = (clusters.folder / name for name in ("map.png", "map.html"))
    return Families(clusters.meta["layer"], numbers, picture.read_bytes(), page.read_text(encoding="utf-8"))


def linked(page: str, ids: list[int], renamed: dict[int, str]) -> str:
    """Return the map whose latents ``ids`` link to their pages, which stand in the same folder.

    ``renamed``: latent -> its name, where a language model or a person gave it, which cluster does not know.
    """
    page = page.replace(PAGES, PAGES.replace("[]", json.dumps(ids)), 1)
    return page.replace(RENAMED, RENAMED.replace("{}", inert(renamed)), 1)
