"""Which clusters matter, and which of their latents speak for them: `selected.json`.

Values are codes over documents, a_ij of latent i in document j, none negative. For a cluster with ``size`` members,

    mean, max   of its a_ij          s   the share of them above ``threshold``
    sparsity = s (1 − s)             composite = (0.4 mean + 0.3 max + 0.3 s (1 − s)) ln(1 + size)

the composite score of SAE Inverse Embeddings, which adds activations and shares, so that it depends on their unit. The
stage gives codes in units of the layer's mean code where there is one, and so the scale of the activations is of no
account.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from strata.families.knobs import Selection
from strata.families.similarity import Sparse
from strata.run.door import BadInput

Floats = NDArray[Any]
Labels = NDArray[np.int64]


def in_units(values: Sparse) -> Sparse:
    """``values`` divided by the mean of those that are not 0."""
    scale = values.data.mean() if values.nnz else 1.0
    return csr_array((values.data / scale, values.indices, values.indptr), shape=values.shape)


def cluster_scores(values: Sparse, labels: Labels, clusters: int, threshold: float) -> dict[str, Floats]:
    """Score -> (clusters,). ``values``: (n, documents). A cluster without members scores 0."""
    latent = np.repeat(np.arange(len(labels)), np.diff(values.indptr))
    owner = labels[latent]
    inside = owner >= 0
    owner, data = owner[inside], values.data[inside].astype(np.float64)
    size = np.bincount(labels[labels >= 0], minlength=clusters).astype(np.float64)
    cells = np.maximum(size * values.shape[1], 1)
    mean, largest = np.bincount(owner, data, clusters) / cells, np.zeros(clusters)
    np.maximum.at(largest, owner, data)
    share = np.bincount(owner, data > threshold, clusters) / cells
    sparsity = share * (1 - share)
    composite = (0.4 * mean + 0.3 * largest + 0.3 * sparsity) * np.log1p(size)
    return {"size": size, "mean": mean, "max": largest, "sparsity": sparsity, "composite": composite}


def latent_scores(values: Sparse, knobs: Selection) -> Floats:
    """(n,) the mean, the largest or a percentile of each latent's values over all documents, zeros among them."""
    if knobs.latents == "mean":
        return np.asarray(values.sum(1)).ravel() / values.shape[1]
    if knobs.latents == "max":
        return values.max(axis=1).toarray().ravel()
    return np.array([np.percentile(values[[i]].toarray(), knobs.percentile) for i in range(values.shape[0])])


def chosen_clusters(scores: dict[str, Floats], knobs: Selection) -> list[int]:
    """The clusters to choose from, the best first; those without members never."""
    score, there = scores[knobs.score], np.flatnonzero(scores["size"] > 0)
    if knobs.clusters == "single":
        if knobs.single not in there:
            last = len(scores["size"]) - 1
            raise BadInput(
                f"params.yaml: cluster.selection.single is {knobs.single}, which is no cluster with latents that the "
                f"filters kept; choose one of 0 to {last}"
            )
        return [knobs.single]
    order = there[np.lexsort((there, -score[there]))]
    return (order if knobs.clusters == "all" else order[: knobs.top_n]).tolist()


def select(
    values: Sparse, labels: Labels, ids: NDArray[np.int64], clusters: int, knobs: Selection
) -> list[dict[str, Any]]:
    """The ``per_cluster`` best latents of each chosen cluster, by their number in the layer, ``ids`` (n,)."""
    scores, each = cluster_scores(values, labels, clusters, knobs.threshold), latent_scores(values, knobs)
    found = []
    for rank, cluster in enumerate(chosen_clusters(scores, knobs)):
        members = np.flatnonzero(labels == cluster)
        best = members[np.lexsort((members, -each[members]))][: knobs.per_cluster]
        for latent in best.tolist():
            found.append(
                {
                    "latent": int(ids[latent]),
                    "cluster": cluster,
                    "rank": rank,
                    "cluster_score": float(scores[knobs.score][cluster]),
                    "latent_score": float(each[latent]),
                }
            )
    return found
