"""Select the clusters that matter, and the latents that represent them: `selected.json`.

Values a_ij are the mean codes of latent i in document j; none is negative. For a cluster with ``size`` members,

    mean, max   of its a_ij          s   the share of its a_ij above ``threshold``
    sparsity = s (1 − s)             composite = (0.4 mean + 0.3 max + 0.3 s (1 − s)) ln(1 + size)

This is the composite score of SAE Inverse Embeddings. It adds activations and shares, so that it depends on the unit of
the activations. Therefore the stage measures codes in units of the layer's mean code (:func:`in_units`), so that the
scale of the activations does not matter.
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
    """Divide ``values`` by the mean of those that are not 0."""
    scale = values.data.mean() if values.nnz else 1.0
    return csr_array((values.data / scale, values.indices, values.indptr), shape=values.shape)


def cluster_scores(values: Sparse, labels: Labels, clusters: int, threshold: float) -> dict[str, Floats]:
    """Compute the scores above for each cluster: name -> (clusters,). A cluster without members scores 0.

    ``values``: (n, documents). ``labels``: (n,) the cluster of each latent, or below 0 if it does not count.
    """
    # The cluster and the value of each entry that counts.
    latent = np.repeat(np.arange(len(labels)), np.diff(values.indptr))
    owner = labels[latent]
    inside = owner >= 0
    owner, data = owner[inside], values.data[inside].astype(np.float64)

    size = np.bincount(labels[labels >= 0], minlength=clusters).astype(np.float64)
    cells = np.maximum(size * values.shape[1], 1)  # entries of each cluster, zeros included
    mean, largest = np.bincount(owner, data, clusters) / cells, np.zeros(clusters)
    np.maximum.at(largest, owner, data)
    share = np.bincount(owner, data > threshold, clusters) / cells
    sparsity = share * (1 - share)
    composite = (0.4 * mean + 0.3 * largest + 0.3 * sparsity) * np.log1p(size)
    return {"size": size, "mean": mean, "max": largest, "sparsity": sparsity, "composite": composite}


def latent_scores(values: Sparse, knobs: Selection) -> Floats:
    """Score each latent, (n,): the mean, the largest or a percentile of its values over all documents, zeros included.

    ``values``: (n, documents).
    """
    if knobs.latents == "mean":
        return np.asarray(values.sum(1)).ravel() / values.shape[1]
    if knobs.latents == "max":
        return values.max(axis=1).toarray().ravel()
    return np.array([np.percentile(values[[i]].toarray(), knobs.percentile) for i in range(values.shape[0])])


def chosen_clusters(scores: dict[str, Floats], knobs: Selection) -> list[int]:
    """List the clusters that ``knobs`` choose, the best first, never one without members.

    Raises BadInput if the single cluster that was asked for has no members.
    """
    score, nonempty = scores[knobs.score], np.flatnonzero(scores["size"] > 0)
    if knobs.clusters == "single":
        if knobs.single not in nonempty:
            last = len(scores["size"]) - 1
            raise BadInput(
                f"params.yaml: cluster.selection.single is {knobs.single}, which is no cluster with latents that the "
                f"filters kept; choose one of 0 to {last}"
            )
        return [knobs.single]

    order = nonempty[np.lexsort((nonempty, -score[nonempty]))]
    return (order if knobs.clusters == "all" else order[: knobs.top_n]).tolist()


def select(
    values: Sparse, labels: Labels, ids: NDArray[np.int64], clusters: int, knobs: Selection
) -> list[dict[str, Any]]:
    """Select the ``per_cluster`` best latents of each chosen cluster, with the scores that chose them.

    ``values``: (n, documents). ``labels``: (n,). ``ids``: (n,) the number of each latent in the layer.
    """
    scores, latent_score = cluster_scores(values, labels, clusters, knobs.threshold), latent_scores(values, knobs)
    selected = []
    for rank, cluster in enumerate(chosen_clusters(scores, knobs)):
        members = np.flatnonzero(labels == cluster)
        best = members[np.lexsort((members, -latent_score[members]))][: knobs.per_cluster]
        for latent in best.tolist():
            selected.append(
                {
                    "latent": int(ids[latent]),
                    "cluster": cluster,
                    "rank": rank,
                    "cluster_score": float(scores[knobs.score][cluster]),
                    "latent_score": float(latent_score[latent]),
                }
            )
    return selected
