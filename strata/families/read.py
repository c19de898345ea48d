"""Opens what cluster wrote, `data/clusters/<L>/`; the only part of this room that others import.

`meta.json`         what it was made from: layer, latents, method, its parameters, counts
`latents.parquet`   latent, cluster (0 …, or NOISE, DEAD), medoid, silhouette, x and y on the map
`clusters.parquet`  cluster, size, medoid, name, scores; by falling size
`selected.json`     the latents that later stages work on, with the cluster and the scores that chose each
`tree.npy`          the linkage tree, of agglomerative clustering only
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from strata.run.door import BadInput
from strata.run.files import check_hash, read_meta

NOISE, DEAD = -1, -2  # the labels of a living latent without a cluster, and of a latent that never fires


@dataclass(frozen=True)
class Clusters:
    """The families of a layer's latents.

    ``labels``: (latents,) int64, the cluster of each latent, or NOISE or DEAD. Clusters are numbered from 0 by falling
    size, then by first member. ``living``: (n,) int64, the latents that are not dead, in rising order. ``tree``:
    (n - 1, 4) float64, scipy's linkage of the living latents in that order; None unless the method was agglomerative.
    """

    folder: Path
    meta: dict[str, Any]
    labels: NDArray[np.int64]
    tree: NDArray[np.float64] | None

    @property
    def living(self) -> NDArray[np.int64]:
        return np.flatnonzero(self.labels != DEAD)

    def table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """Read `<name>.parquet`, or some columns of it, after checking its hash."""
        check_hash(self.folder, f"{name}.parquet", self.meta["files"], "cluster")
        return pq.read_table(self.folder / f"{name}.parquet", columns=columns)


def clustered(folder: Path) -> bool:
    """Whether the stage ran for this layer. `cluster.run: false` leaves a folder that says only that."""
    return not read_meta(folder / "meta.json", {}, "cluster").get("skipped")


def selected(folder: Path) -> list[int]:
    """List the latents of `selected.json`, the best cluster's first; an empty list if the stage was skipped."""
    if not clustered(folder):
        return []

    check_hash(folder, "selected.json", read_meta(folder / "meta.json", {}, "cluster").get("files", {}), "cluster")
    chosen = read_meta(folder / "selected.json", {"latents": list}, "cluster")
    return [entry["latent"] for entry in chosen["latents"]]


def open_clusters(folder: Path) -> Clusters:
    """Open a layer's folder, `data/clusters/<L>/`. Raises BadInput if it was skipped or its files do not agree."""
    meta = read_meta(folder / "meta.json", {"layer": int, "latents": int, "files": dict}, "cluster")
    if not clustered(folder):
        raise BadInput(f"{folder} is empty: cluster was skipped; set cluster.run: true in params.yaml")

    unlabelled = Clusters(folder, meta, np.empty(0, np.int64), None)
    labels = unlabelled.table("latents", ["cluster"])["cluster"].to_numpy().astype(np.int64)
    if len(labels) != meta["latents"]:
        raise BadInput(
            f"{folder / 'latents.parquet'} has {len(labels)} latents, but its meta.json says {meta['latents']}"
        )

    path, tree = folder / "tree.npy", None
    check_hash(folder, path.name, meta["files"], "cluster")
    if path.exists():
        living = int((labels != DEAD).sum())
        tree = np.load(path)
        if tree.shape != (living - 1, 4):
            raise BadInput(
                f"{path} is of shape {tree.shape}, but {living} living latents have a tree of {living - 1} rows"
            )
    return Clusters(folder, meta, labels, tree)


def cut(tree: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Cut a linkage ``tree`` (n - 1, 4) into exactly ``count`` clusters; return the cluster of each leaf, (n,).

    The first n - count joins are kept. A cut at a height could leave fewer clusters, where heights are equal. Raises
    BadInput unless 1 ≤ count ≤ n.
    """
    leaves = len(tree) + 1
    if not 1 <= count <= leaves:
        raise BadInput(f"{count} clusters of {leaves} living latents cannot be: ask for 1 to {leaves}")

    # The parent of each node of the tree; a node without one is its own. Then follow parents up to the roots.
    above = np.arange(2 * leaves - 1)
    joins = tree[: leaves - count, :2].astype(np.int64)
    above[joins] = np.arange(leaves, leaves + len(joins))[:, None]
    while (above != above[above]).any():
        above = above[above]
    return numbered(above[:leaves])


def numbered(labels: NDArray[Any]) -> NDArray[np.int64]:
    """Number ``labels`` anew from 0, by falling size, then by first member. Negative labels (NOISE, DEAD) stay.

    [7, 4, 4, -1] -> [1, 0, 0, -1].
    """
    unique, first_member, inverse, size = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    clusters = np.flatnonzero(unique >= 0)
    order = clusters[np.lexsort((first_member[clusters], -size[clusters]))]
    number = unique.astype(np.int64)
    number[order] = np.arange(len(order))
    return number[inverse]
