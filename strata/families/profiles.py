"""Where clusters fire: mean codes in documents, the documents with the largest ones, and clusters that correlate."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from strata.families.similarity import Sparse

Floats = NDArray[Any]
Table = dict[str, Any]


def cluster_profiles(profile: Sparse, labels: NDArray[np.int64], clusters: int) -> Sparse:
    """Average the members' rows of ``profile`` (n, documents) for each cluster, (clusters, documents).

    ``labels``: (n,) the cluster of each latent, below 0 where it is in none. The row of a cluster without members is
    empty. In each row of the result, documents stand in rising order.
    """
    inside = np.flatnonzero(labels >= 0)
    size = np.bincount(labels[inside], minlength=clusters)
    member = csr_array((1 / size[labels[inside]], (labels[inside], inside)), shape=(clusters, len(labels)))
    means = csr_array(member @ profile)
    means.sort_indices()
    return means


def top_documents(profiles: Sparse, top: int) -> Table:
    """Find the ``top`` documents in which each cluster's mean code is largest.

    ``profiles``: (clusters, documents). Returns the columns cluster, rank (from 0), column (of ``profiles``) and mean.
    Of equal means the lower column comes first. Only documents where the cluster fires count: a cluster that fires in
    fewer than ``top`` has fewer lines.
    """
    parts = []
    for cluster in range(profiles.shape[0]):
        entries = slice(profiles.indptr[cluster], profiles.indptr[cluster + 1])
        column, mean = profiles.indices[entries], profiles.data[entries]
        order = np.lexsort((column, -mean))[:top]
        parts.append((np.full(len(order), cluster), np.arange(len(order)), column[order], mean[order]))

    columns = [np.concatenate(column) for column in zip(*parts, strict=True)] if parts else [np.empty(0, int)] * 4
    return dict(zip(("cluster", "rank", "column", "mean"), columns, strict=True))


def correlated(profiles: Sparse, least: float) -> Table:
    """Find the pairs of clusters whose profiles correlate over documents by more than ``least``.

    ``profiles``: (clusters, documents). Returns the columns cluster, other (always the higher number) and correlation,
    the strongest first. A profile that is the same in all documents has correlation 0 with every other one; so such
    pairs are listed only if ``least`` is below 0.
    """
    documents = profiles.shape[1]
    mean = np.asarray(profiles.sum(1)).ravel() / documents
    covariance = (profiles @ profiles.T).toarray() / documents - np.outer(mean, mean)

    variance = np.diag(covariance).copy()
    constant = variance <= 1e-12 * np.maximum(mean**2, 1e-30)  # up to rounding
    deviation = np.sqrt(np.where(constant, 1, variance))
    correlation = covariance / np.outer(deviation, deviation)
    correlation[constant] = correlation[:, constant] = 0

    cluster, other = np.nonzero(np.triu(correlation > least, 1))
    value = correlation[cluster, other]
    order = np.lexsort((other, cluster, -value))
    return {"cluster": cluster[order], "other": other[order], "correlation": np.minimum(value[order], 1.0)}
