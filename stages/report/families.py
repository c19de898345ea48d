"""Show the families of latents that cluster found in a layer."""

from typing import Any, NamedTuple

from strata.families.read import Clusters
from strata.pages.readable import Row, inert

# Where the map is told that it stands among the latents' pages: which latents have one, and which have a name by
# explain or a person, which cluster does not know.
SITE = '<script type="application/json" id="site">null</script>'


class Families(NamedTuple):
    """A layer's families. ``numbers``: what cluster measured. ``picture``: the map as PNG. ``page``: the map as HTML,
    whose latents do not link to their pages yet. ``labels``: the family of each latent, below 0 where it has none.
    ``table``: a row for each family."""

    layer: int
    numbers: dict[str, Any]
    picture: bytes
    page: str
    labels: list[int]
    table: list[Row]

    def of(self, latent: int) -> Row | None:
        """Return the family of a latent: its number, name, size, and its members; None if it is in none."""
        cluster = self.labels[latent]
        if cluster < 0:
            return None
        members = [other for other, label in enumerate(self.labels) if label == cluster]
        return {**self.table[cluster], "members": members}


def read_families(clusters: Clusters, numbers: dict[str, Any]) -> Families:
    """Read a layer's families and maps."""
    picture, page = (clusters.folder / name for name in ("map.png", "map.html"))
    return Families(
        clusters.meta["layer"],
        numbers,
        picture.read_bytes(),
        page.read_text(encoding="utf-8"),
        clusters.labels.tolist(),
        clusters.table("clusters", ["cluster", "name", "size", "medoid"]).to_pylist(),
    )


def linked(page: str, ids: list[int], renamed: dict[int, str]) -> str:
    """Return the map whose latents ``ids`` link to their pages, which stand in the same folder.

    ``renamed``: latent -> its name, where a language model or a person gave it.
    """
    return page.replace(SITE, SITE.replace("null", inert({"pages": ids, "names": renamed})), 1)
