"""Measure how good a clustering is.

All measures are computed from ``sums`` (n, clusters): the summed distance of each latent from each cluster's members.

Distances d = 1 − s come from inner products s of unit vectors. So ‖x_i − x_j‖² = 2 d_ij, and distances from means need
no vectors. ``labels`` (n,) hold the cluster of each latent, or NOISE.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from strata.families.read import NOISE

Floats = NDArray[Any]
Labels = NDArray[np.int64]


def sizes(labels: Labels, clusters: int) -> NDArray[np.int64]:
    """Count the members of each cluster, (clusters,)."""
    return np.bincount(labels[labels >= 0], minlength=clusters)


def silhouettes(sums: Floats, labels: Labels) -> Floats | None:
    """Compute each latent's silhouette (b − a) / max(a, b), (n,); None where there are fewer than two clusters.

    a is the mean distance from the other members of its cluster, b the least mean distance from the members of another
    cluster. A cluster of one has 0, noise has NaN.
    """
    clusters = sums.shape[1]
    if clusters < 2:
        return None
    size, inside = sizes(labels, clusters), np.flatnonzero(labels >= 0)
    own = labels[inside]
    rows = np.arange(len(inside))

    mean = sums[inside] / size
    a = sums[inside, own] / np.maximum(size[own] - 1, 1)  # the distance from itself is 0
    mean[rows, own] = np.inf
    b = mean.min(1)

    silhouette = np.full(len(labels), np.nan)
    largest = np.maximum(np.maximum(a, b), 1e-30)
    silhouette[inside] = np.where(size[own] > 1, (b - a) / largest, 0.0)
    return silhouette


def medoids(sums: Floats, labels: Labels) -> NDArray[np.int64]:
    """Find each cluster's member with the least summed distance from the others, (clusters,).

    Of equal sums the first member is taken.
    """
    clusters = sums.shape[1]
    inside = np.flatnonzero(labels >= 0)
    own = labels[inside]

    # By cluster, then by summed distance, then by number: the first of each cluster is its medoid.
    order = np.lexsort((inside, sums[inside, own], own))
    _, medoid_place = np.unique(own[order], return_index=True)
    assert len(medoid_place) == clusters
    return inside[order[medoid_place]]


def squared_to_means(sums: Floats, labels: Labels) -> Floats:
    """Compute squared distances from the clusters' means, (n, clusters).

    ‖x_i − mean of c‖² = 2 (mean_{j∈c} d_ij − ½ mean_{j,k∈c} d_jk).
    """
    clusters = sums.shape[1]
    size = sizes(labels, clusters)
    inside = np.flatnonzero(labels >= 0)
    own = labels[inside]
    within = np.bincount(own, sums[inside, own], clusters) / size**2
    return np.maximum(2 * (sums / size - within / 2), 0)


def indices(sums: Floats, labels: Labels) -> dict[str, float | None]:
    """Compute the silhouette, Davies-Bouldin (less is better), Calinski-Harabasz (more is better), and the noise ratio.

    The first three look only at latents that are not noise; the last is the share of latents that are. A measure is
    None where it is not defined: with one cluster, or with as many clusters as latents.
    """
    clusters, inside = sums.shape[1], np.flatnonzero(labels >= 0)
    measures: dict[str, float | None] = {"silhouette": None, "davies_bouldin": None, "calinski_harabasz": None}
    measures["noise_ratio"] = float((labels == NOISE).mean())
    n, silhouette = len(inside), silhouettes(sums, labels)
    if silhouette is None or clusters >= n:
        return measures
    measures["silhouette"] = float(silhouette[inside].mean())

    own, size = labels[inside], sizes(labels, clusters)
    squared = squared_to_means(sums, labels)[inside, own]  # from the mean of one's own cluster
    between = np.zeros((clusters, clusters))
    np.add.at(between, own, sums[inside])
    mean = between / (size[:, None] * size)  # (clusters, clusters) the mean distance of two members

    # Calinski-Harabasz: the variance between clusters over the variance within them.
    within, total = float(squared.sum()), float(between.sum()) / n
    if within > 0:
        measures["calinski_harabasz"] = (total - within) / within * (n - clusters) / (clusters - 1)

    # Davies-Bouldin: the spread of two clusters over the distance of their means, for each cluster's worst neighbour.
    apart = np.sqrt(np.maximum(2 * mean - np.diag(mean)[:, None] - np.diag(mean), 0))
    spread = np.bincount(own, np.sqrt(squared), clusters) / size
    np.fill_diagonal(apart, np.inf)
    if (apart > 1e-9).all():
        measures["davies_bouldin"] = float(((spread[:, None] + spread) / apart).max(1).mean())
    return measures
