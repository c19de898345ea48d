"""Four ways of putting latents into families by their distances. Labels are 0 … or NOISE."""

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

ROUNDS, STARTS = 50, 3  # of k-means: at the most, and from so many first centres
Labels = NDArray[np.int64]
Floats = NDArray[Any]


@dataclass(frozen=True)
class Grouped:
    """``labels``: (n,). ``parameters``: what they were made with. ``tree``: scipy's linkage, of agglomerative only.

    ``tried``: the eps of dbscan, each with its clusters, noise and silhouette.
    """

    labels: Labels
    parameters: dict[str, Any]
    tree: Floats | None = None
    tried: list[dict[str, Any]] = field(default_factory=list)


def group(distance: Floats, n: int, knobs: Grouping, seed: int) -> Grouped:
    """Put n latents with condensed ``distance`` into families."""
    found = {"agglomerative": agglomerative, "dbscan": dbscan, "hdbscan": hdbscan, "kmeans": kmeans}[knobs.method](
        distance, n, knobs, seed
    )
    labels, parameters = numbered(found.labels), {"method": knobs.method, **found.parameters}
    return Grouped(labels, parameters, found.tree, found.tried)


def count_of(clusters: int | float, n: int) -> int:
    """The number of clusters that ``clusters``, a number or a share of n living latents, asks for."""
    count = clusters if isinstance(clusters, int) else max(1, round(clusters * n))
    if count > n:
        raise BadInput(
            f"params.yaml: cluster.clusters is {count}, but only {n} latents are living; ask for at most {n}, or for a "
            "share of them, such as 0.125"
        )
    return count


def agglomerative(distance: Floats, n: int, knobs: Grouping, seed: int) -> Grouped:
    """Average linkage, cut into a number of clusters or at a distance. Has no chance in it."""
    from scipy.cluster.hierarchy import linkage

    tree = linkage(distance.astype(np.float64), "average") if n > 1 else np.empty((0, 4))
    if knobs.distance is not None:
        count = n - int((tree[:, 2] <= knobs.distance).sum())
        return Grouped(cut(tree, count), {"distance": knobs.distance, "clusters": count}, tree)
    count = count_of(knobs.clusters, n)
    return Grouped(cut(tree, count), {"clusters": count}, tree)


def dbscan(distance: Floats, n: int, knobs: Grouping, seed: int) -> Grouped:
    """DBSCAN at the given eps, or at the one with the best silhouette.

    A latent is core when ``min_samples`` latents, itself among them, are within eps. Core latents within eps of one
    another share a cluster: all eps are cuts of one spanning tree. Others join the nearest core within eps, or are
    noise.
    The eps tried are quantiles of the distance to the ``min_samples``-th, which is where latents become core, and so
    lie where something changes. Noise counts 0 in the silhouette that chooses: else the least eps, which calls nearly
    all noise, would win. Where no eps gives two clusters, the middle one is taken.
    """
    core = condensed.nearest(distance, n, min(knobs.min_samples, n))[1][:, -1].astype(np.float64)
    if n < knobs.min_samples:
        core[:] = np.inf
    ends, lengths = condensed.spanning_tree(distance, core)
    if knobs.eps is not None:
        return Grouped(
            _within(distance, core, ends, lengths, knobs.eps), {"eps": knobs.eps, "min_samples": knobs.min_samples}
        )
    finite = core[np.isfinite(core)]
    steps = np.quantile(finite, np.linspace(0.02, 0.98, knobs.eps_tries)) if len(finite) else np.ones(1)
    steps = np.unique(np.clip(steps, 1e-6, 2.0))
    found, tried = [], []
    for eps in steps.tolist():
        labels = numbered(_within(distance, core, ends, lengths, eps))
        measured = quality.silhouettes(condensed.summed(distance, labels, int(labels.max()) + 1), labels)
        inside = labels != NOISE
        tried.append(
            {
                "eps": eps,
                "clusters": int(labels.max()) + 1,
                "noise": int((~inside).sum()),
                "silhouette": None if measured is None else float(measured[inside].mean()),
                "score": None if measured is None else float(measured[inside].sum() / n),
            }
        )
        found.append(labels)
    scores = np.array([-np.inf if line["score"] is None else line["score"] for line in tried])
    best = int(scores.argmax()) if np.isfinite(scores).any() else len(tried) // 2
    return Grouped(found[best], {"eps": tried[best]["eps"], "min_samples": knobs.min_samples}, tried=tried)


def _within(distance: Floats, core: Floats, ends: Floats, lengths: Floats, eps: float) -> Labels:
    """The labels of DBSCAN at ``eps``, from the spanning tree of what is reachable."""
    kept = ends[lengths <= eps]
    graph = coo_array((np.ones(len(kept)), (kept[:, 0], kept[:, 1])), shape=(len(core), len(core)))
    labels = connected_components(graph, directed=False)[1].astype(np.int64)
    labels[core > eps] = NOISE
    return condensed.nearest_of(distance, labels, eps)


def hdbscan(distance: Floats, n: int, knobs: Grouping, seed: int) -> Grouped:
    """HDBSCAN, given the spanning tree and each latent's nearest ones instead of n² distances: no others matter."""
    from sklearn.cluster import HDBSCAN

    parameters = {"min_samples": knobs.min_samples, "min_cluster_size": knobs.min_cluster_size}
    if n < max(knobs.min_samples, knobs.min_cluster_size, 2):
        return Grouped(np.full(n, NOISE), parameters)
    near, far = condensed.nearest(distance, n, knobs.min_samples)
    ends, _ = condensed.spanning_tree(distance, far[:, -1].astype(np.float64))
    rows = np.concatenate([np.repeat(np.arange(n), near.shape[1]), ends[:, 0]])
    columns = np.concatenate([near.ravel(), ends[:, 1]])
    pair = np.unique(np.sort(np.stack([rows, columns]), axis=0), axis=1)
    low, high = pair
    inner = low < high
    value = np.zeros(len(low))
    value[inner] = np.maximum(distance[low[inner] * (2 * n - low[inner] - 1) // 2 + high[inner] - low[inner] - 1], 1e-9)
    both = (
        np.concatenate([value, value[inner]]),
        (
            np.concatenate([low, high[inner]]),
            np.concatenate([high, low[inner]]),
        ),
    )
    graph = coo_array(both, shape=(n, n)).tocsr()
    model = HDBSCAN(metric="precomputed", copy=True, **parameters)  # pyright: ignore[reportArgumentType]
    return Grouped(np.maximum(model.fit(graph).labels_.astype(np.int64), NOISE), parameters)


def kmeans(distance: Floats, n: int, knobs: Grouping, seed: int) -> Grouped:
    """k-means in the space whose inner products are the similarities: ‖x_i − x_j‖² = 2 d_ij.

    The squared distance of i from the mean of c is 2 (mean_{j∈c} d_ij − ½ mean_{j,k∈c} d_jk), so that no vectors are
    needed. The best of STARTS runs from centres drawn as k-means++ draws them.
    """
    count, rng = count_of(knobs.clusters, n), np.random.default_rng(seed)
    runs = [_lloyd(distance, n, count, rng) for _ in range(STARTS)]
    labels, inertia = min(runs, key=lambda run: run[1])
    return Grouped(labels, {"clusters": count, "inertia": inertia, "seed": seed})


def _lloyd(distance: Floats, n: int, count: int, rng: np.random.Generator) -> tuple[Labels, float]:
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
        if mass.sum() == 0:  # all that are left lie on a centre
            mass = np.isin(np.arange(n), centres, invert=True).astype(float)
        centres.append(int(rng.choice(n, p=mass / mass.sum())))
    labels[centres] = np.arange(count)
    squared = np.empty(0)
    for _ in range(ROUNDS):
        squared = quality.squared_to_means(condensed.summed(distance, labels, count), labels)
        new = squared.argmin(1)
        for empty in np.flatnonzero(
            np.bincount(new, minlength=count) == 0
        ):  # takes the one that fits worst where it is
            worst = np.where(np.bincount(new, minlength=count)[new] > 1, squared[np.arange(n), new], -np.inf).argmax()
            new[worst] = empty
            squared[worst, empty] = 0
        if (new == labels).all():
            break
        labels = new
    return labels, float(squared[np.arange(n), labels].sum())
