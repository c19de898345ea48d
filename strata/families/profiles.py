"""Where clusters fire: mean codes over documents, the documents that light them, and clusters that go together."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from strata.families.similarity import Sparse

Floats = NDArray[Any]
Table = dict[str, Any]


def cluster_profiles(profile: Sparse, labels: NDArray[np.int64], clusters: int) -> Sparse:
    """(clusters, documents) the mean of the members' rows of ``profile`` (n, documents)."""
    inside = np.flatnonzero(labels >= 0)
    size = np.bincount(labels[inside], minlength=clusters)
    member = csr_array((1 / size[labels[inside]], (labels[inside], inside)), shape=(clusters, len(labels)))
    found = csr_array(member @ profile)
    found.sort_indices()
    return found


def top_documents(profiles: Sparse, top: int) -> Table:
    """The ``top`` documents in which each cluster's mean code is largest: cluster, rank, column, mean; ties go to the
    lower column."""
    parts = []
    for cluster in range(profiles.shape[0]):
        where = slice(profiles.indptr[cluster], profiles.indptr[cluster + 1])
        column, mean = profiles.indices[where], profiles.data[where]
        order = np.lexsort((column, -mean))[:top]
        parts.append((np.full(len(order), cluster), np.arange(len(order)), column[order], mean[order]))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)] if parts else [np.empty(0, int)] * 4
    return dict(zip(("cluster", "rank", "column", "mean"), columns, strict=True))


def correlated(profiles: Sparse, least: float) -> Table:
    """Pairs of clusters whose profiles correlate over documents by more than ``least``: cluster, other (above it),
    correlation; the strongest first. A profile that is the same everywhere correlates with nothing."""
    documents = profiles.shape[1]
    mean = np.asarray(profiles.sum(1)).ravel() / documents
    covariance = (profiles @ profiles.T).toarray() / documents - np.outer(mean, mean)
    variance = np.diag(covariance).copy()
    flat = variance <= 1e-12 * np.maximum(mean**2, 1e-30)
    deviation = np.sqrt(np.where(flat, 1, variance))
    correlation = covariance / np.outer(deviation, deviation)
    correlation[flat] = correlation[:, flat] = 0
    cluster, other = np.nonzero(np.triu(correlation > least, 1))
    value = correlation[cluster, other]
    order = np.lexsort((other, cluster, -value))
    return {"cluster": cluster[order], "other": other[order], "correlation": np.minimum(value[order], 1.0)}
