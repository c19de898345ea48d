"""How good a clustering is, and how far it can be trusted: all from the summed distances of latents from clusters.

Distances d = 1 − s come from inner products s of unit vectors, so that ‖x_i − x_j‖² = 2 d_ij and means need no vectors.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from strata.families.read import NOISE

Floats = NDArray[Any]
Labels = NDArray[np.int64]


def sizes(labels: Labels, clusters: int) -> NDArray[np.int64]:
    """(clusters,) how many members each has."""
    return np.bincount(labels[labels >= 0], minlength=clusters)


def silhouettes(sums: Floats, labels: Labels) -> Floats | None:
    """(n,) (b − a) / max(a, b), a the mean distance from the others of one's cluster, b the least mean distance from
    another cluster's members.

    0 for a cluster of one, NaN for noise. None where there are fewer than two clusters. ``sums``: (n, clusters).
    """
    clusters = sums.shape[1]
    if clusters < 2:
        return None
    size, inside = sizes(labels, clusters), np.flatnonzero(labels >= 0)
    own = labels[inside]
    mean = sums[inside] / size
    a = sums[inside, own] / np.maximum(size[own] - 1, 1)
    mean[np.arange(len(inside)), own] = np.inf
    b = mean.min(1)
    found = np.full(len(labels), np.nan)
    largest = np.maximum(np.maximum(a, b), 1e-30)
    found[inside] = np.where(size[own] > 1, (b - a) / largest, 0.0)
    return found


def medoids(sums: Floats, labels: Labels) -> NDArray[np.int64]:
    """(clusters,) the member of each with the least summed distance from the others; of equal ones the first."""
    clusters = sums.shape[1]
    inside = np.flatnonzero(labels >= 0)
    own = labels[inside]
    order = np.lexsort((inside, sums[inside, own], own))
    _, first = np.unique(own[order], return_index=True)
    assert len(first) == clusters
    return inside[order[first]]


def squared_to_means(sums: Floats, labels: Labels) -> Floats:
    """(n, clusters) ‖x_i − mean of c‖² = 2 (mean_{j∈c} d_ij − ½ mean_{j,k∈c} d_jk)."""
    clusters = sums.shape[1]
    size = sizes(labels, clusters)
    inside = np.flatnonzero(labels >= 0)
    own = labels[inside]
    within = np.bincount(own, sums[inside, own], clusters) / size**2
    return np.maximum(2 * (sums / size - within / 2), 0)


def indices(sums: Floats, labels: Labels) -> dict[str, float | None]:
    """Silhouette, Davies-Bouldin (less is better) and Calinski-Harabasz (more is better) of the latents that are no
    noise, and the share that is. None where a measure is not defined: with one cluster, or as many as latents.
    """
    clusters, inside = sums.shape[1], np.flatnonzero(labels >= 0)
    found: dict[str, float | None] = {"silhouette": None, "davies_bouldin": None, "calinski_harabasz": None}
    found["noise_ratio"] = float((labels == NOISE).mean())
    n, each = len(inside), silhouettes(sums, labels)
    if each is None or clusters >= n:
        return found
    found["silhouette"] = float(each[inside].mean())
    own, size = labels[inside], sizes(labels, clusters)
    squared = squared_to_means(sums, labels)[inside, own]
    between = np.zeros((clusters, clusters))
    np.add.at(between, own, sums[inside])
    mean = between / (size[:, None] * size)
    within, total = float(squared.sum()), float(between.sum()) / n
    if within > 0:
        found["calinski_harabasz"] = (total - within) / within * (n - clusters) / (clusters - 1)
    apart = np.sqrt(np.maximum(2 * mean - np.diag(mean)[:, None] - np.diag(mean), 0))
    spread = np.bincount(own, np.sqrt(squared), clusters) / size
    np.fill_diagonal(apart, np.inf)
    if (apart > 1e-9).all():
        found["davies_bouldin"] = float(((spread[:, None] + spread) / apart).max(1).mean())
    return found
