"""Four methods that put latents into families by their distances. A label is 0, 1, … or NOISE."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from strata.families import condensed, quality
from strata.families.knobs import Grouping
from strata.families.read import NOISE, cut, numbered
from strata.run.door import BadInput

ROUNDS = 50  # of k-means, at most
STARTS = 3  # runs of k-means, each from other first centres
Labels = NDArray[np.int64]
Floats = NDArray[Any]


@dataclass(frozen=True)
class Grouped:
    """The families that a method found.

    ``labels``: (n,). ``parameters``: what the labels were made with. ``tree``: scipy's linkage, for agglomerative only.
    ``tried``: for dbscan only, each eps that was tried, with its number of clusters, its noise and its silhouette.
    """

    labels: Labels
    parameters: dict[str, Any]
    tree: Floats | None = None
    tried: list[dict[str, Any]] = field(default_factory=list)


def group(distance: Floats, n: int, knobs: Grouping, seed: int) -> Grouped:
    """Put n latents into families by their condensed ``distance``, with the method that ``knobs`` name.

    The families are numbered by falling size.
    """
    methods = {"agglomerative": agglomerative, "dbscan": dbscan, "hdbscan": hdbscan, "kmeans": kmeans}
    grouped = methods[knobs.method](distance, n, knobs, seed)
    labels, parameters = numbered(grouped.labels), {"method": knobs.method, **grouped.parameters}
    return Grouped(labels, parameters, grouped.tree, grouped.tried)


def count_of(clusters: int | float, n: int) -> int:
    """Turn ``clusters``, a number or a share of the n living latents, into a number. Raises BadInput above n."""
    count = clusters if isinstance(clusters, int) else max(1, round(clusters * n))
    if count > n:
        raise BadInput(
            f"params.yaml: cluster.clusters is {count}, but only {n} latents are living; ask for at most {n}, or for a "
            "share of them, such as 0.125"
        )
    return count


def agglomerative(distance: Floats, n: int, knobs: Grouping, seed: int) -> Grouped:
    """Group by average linkage, and cut the tree into a number of clusters, or at a distance. Ignores ``seed``."""
    from scipy.cluster.hierarchy import linkage

    tree = linkage(distance.astype(np.float64), "average") if n > 1 else np.empty((0, 4))
    if knobs.distance is not None:
        count = n - int((tree[:, 2] <= knobs.distance).sum())  # each join below the distance leaves one cluster less
        return Grouped(cut(tree, count), {"distance": knobs.distance, "clusters": count}, tree)
    count = count_of(knobs.clusters, n)
    return Grouped(cut(tree, count), {"clusters": count}, tree)


def dbscan(distance: Floats, n: int, knobs: Grouping, seed: int) -> Grouped:
    """Group by DBSCAN, at ``knobs.eps`` or else at the eps with the best silhouette. Ignores ``seed``.

    A latent is core when ``min_samples`` latents, itself among them, are within eps. Core latents within eps of one
    another share a cluster: the clusters of every eps are cuts of one spanning tree. Other latents join the nearest
    core latent within eps; without one they are noise.

    The eps that are tried are quantiles of the distance to the ``min_samples``-th nearest latent. There latents become
    core, so that each eps changes something. In the silhouette that chooses, noise counts 0; otherwise the least eps
    would win, which calls nearly all latents noise. Where no eps gives two clusters, the middle eps is taken.
    """
    # (n,) the least eps at which each latent is core
    core = condensed.nearest(distance, n, min(knobs.min_samples, n))[1][:, -1].astype(np.float64)
    if n < knobs.min_samples:
        core[:] = np.inf
    ends, lengths = condensed.spanning_tree(distance, core)

    if knobs.eps is not None:
        labels = _within(distance, core, ends, lengths, knobs.eps)
        return Grouped(labels, {"eps": knobs.eps, "min_samples": knobs.min_samples})

    finite = core[np.isfinite(core)]
    candidates = np.quantile(finite, np.linspace(0.02, 0.98, knobs.eps_tries)) if len(finite) else np.ones(1)
    candidates = np.unique(np.clip(candidates, 1e-6, 2.0))

    labels_by_eps, tried = [], []
    for eps in candidates.tolist():
        labels = numbered(_within(distance, core, ends, lengths, eps))
        clusters = int(labels.max()) + 1
        silhouettes = quality.silhouettes(condensed.summed(distance, labels, clusters), labels)
        inside = labels != NOISE
        tried.append(
            {
                "eps": eps,
                "clusters": clusters,
                "noise": int((~inside).sum()),
                "silhouette": None if silhouettes is None else float(silhouettes[inside].mean()),
                "score": None if silhouettes is None else float(silhouettes[inside].sum() / n),
            }
        )
        labels_by_eps.append(labels)

    scores = np.array([-np.inf if trial["score"] is None else trial["score"] for trial in tried])
    best = int(scores.argmax()) if np.isfinite(scores).any() else len(tried) // 2
    parameters = {"eps": tried[best]["eps"], "min_samples": knobs.min_samples}
    return Grouped(labels_by_eps[best], parameters, tried=tried)


def _within(distance: Floats, core: Floats, ends: Floats, lengths: Floats, eps: float) -> Labels:
    """Return the labels (n,) of DBSCAN at ``eps``.

    ``core``: (n,) the least eps at which each latent is core. ``ends``: (n - 1, 2) and ``lengths``: (n - 1,) the edges
    of the spanning tree of max(d_ij, core_i, core_j).
    """
    edges = ends[lengths <= eps]
    graph = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(len(core), len(core)))
    labels = connected_components(graph, directed=False)[1].astype(np.int64)
    labels[core > eps] = NOISE
    return condensed.nearest_of(distance, labels, eps)


def hdbscan(distance: Floats, n: int, knobs: Grouping, seed: int) -> Grouped:
    """Group by HDBSCAN. Ignores ``seed``.

    HDBSCAN gets a sparse graph instead of n² distances: each latent's nearest ones, and the edges of the spanning tree.
    No other distance matters to it.
    """
    from sklearn.cluster import HDBSCAN

    parameters = {"min_samples": knobs.min_samples, "min_cluster_size": knobs.min_cluster_size}
    if n < max(knobs.min_samples, knobs.min_cluster_size, 2):
        return Grouped(np.full(n, NOISE), parameters)
    near, far = condensed.nearest(distance, n, knobs.min_samples)
    ends, _ = condensed.spanning_tree(distance, far[:, -1].astype(np.float64))

    # The pairs (low, high) of the graph, each once; a latent is also its own nearest, with distance 0.
    rows = np.concatenate([np.repeat(np.arange(n), near.shape[1]), ends[:, 0]])
    columns = np.concatenate([near.ravel(), ends[:, 1]])
    low, high = np.unique(np.sort(np.stack([rows, columns]), axis=0), axis=1)
    apart = low < high

    # Their distances, looked up in condensed order; not 0, which a sparse matrix would take for a missing entry.
    value = np.zeros(len(low))
    place = low[apart] * (2 * n - low[apart] - 1) // 2 + high[apart] - low[apart] - 1
    value[apart] = np.maximum(distance[place], 1e-9)

    # The same in both directions, as HDBSCAN wants it.
    values = np.concatenate([value, value[apart]])
    pairs = np.concatenate([low, high[apart]]), np.concatenate([high, low[apart]])
    graph = coo_array((values, pairs), shape=(n, n)).tocsr()
    model = HDBSCAN(metric="precomputed", copy=True, **parameters)  # pyright: ignore[reportArgumentType]
    return Grouped(np.maximum(model.fit(graph).labels_.astype(np.int64), NOISE), parameters)


def kmeans(distance: Floats, n: int, knobs: Grouping, seed: int) -> Grouped:
    """Group by k-means in the space whose inner products are the similarities: ‖x_i − x_j‖² = 2 d_ij.

    The squared distance of i from the mean of cluster c is 2 (mean_{j∈c} d_ij − ½ mean_{j,k∈c} d_jk), so that no
    vectors are needed. Of STARTS runs, each from centres drawn as k-means++ draws them, the one with the least inertia
    is kept.
    """
    count, rng = count_of(knobs.clusters, n), np.random.default_rng(seed)
    runs = [_lloyd(distance, n, count, rng) for _ in range(STARTS)]
    labels, inertia = min(runs, key=lambda run: run[1])
    return Grouped(labels, {"clusters": count, "inertia": inertia, "seed": seed})


def _lloyd(distance: Floats, n: int, count: int, rng: np.random.Generator) -> tuple[Labels, float]:
    """Run k-means once, with Lloyd's algorithm. Return the labels (n,), and the inertia: the sum of squared distances.

    Stops when no label changes, or after ROUNDS rounds.
    """
    labels = _seeded(distance, n, count, rng)
    squared = np.empty(0)
    for _ in range(ROUNDS):
        squared = quality.squared_to_means(condensed.summed(distance, labels, count), labels)  # (n, count)
        nearest = squared.argmin(1)

        # An empty cluster takes the latent that fits worst where it is, but never the last one of a cluster.
        for empty in np.flatnonzero(np.bincount(nearest, minlength=count) == 0):
            shared = np.bincount(nearest, minlength=count)[nearest] > 1
            worst = np.where(shared, squared[np.arange(n), nearest], -np.inf).argmax()
            nearest[worst] = empty
            squared[worst, empty] = 0

        if (nearest == labels).all():
            break
        labels = nearest
    return labels, float(squared[np.arange(n), labels].sum())


def _seeded(distance: Floats, n: int, count: int, rng: np.random.Generator) -> Labels:
    """Draw ``count`` centres as k-means++ does (Arthur & Vassilvitskii 2007), and label each latent by the nearest.

    A next centre is drawn in proportion to its squared distance, 2 d, from the nearest centre before it.
    """
    least, centres = np.full(n, np.inf), [int(rng.integers(n))]
    labels = np.zeros(n, np.int64)
    while True:
        away = condensed.row(distance, n, centres[-1])
        nearer = away < least
        labels[nearer], least[nearer] = len(centres) - 1, away[nearer]
        if len(centres) == count:
            break

        mass = np.maximum(least, 0).astype(np.float64)
        mass[centres] = 0
        if mass.sum() == 0:  # every other latent lies on a centre: all of them are equally likely
            mass = np.isin(np.arange(n), centres, invert=True).astype(float)
        centres.append(int(rng.choice(n, p=mass / mass.sum())))

    labels[centres] = np.arange(count)
    return labels
