"""Compute what the tabs show: arrays in, tables out. Nothing here knows a browser; whatever is drawn takes a seed."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

WORD = re.compile(r"\w+")
ENOUGH = 50  # principal components that t-SNE gets
COMPONENTS = "first principal component", "second principal component"
PAIRS = 50_000  # pairs of vectors that are compared at most
JUDGED = 2000  # vectors that a silhouette looks at: its time grows with their square
SHUFFLES = 10  # of labels, over which chance is averaged
Array = NDArray[Any]


# --- documents ------------------------------------------------------------------------------------------------------


def lengths(texts: Sequence[str]) -> pd.DataFrame:
    """Count each text's characters, words and distinct words; lexical density is distinct words over words."""
    words = [WORD.findall(text.lower()) for text in texts]
    counts = pd.DataFrame(
        {
            "characters": list(map(len, texts)),
            "words": list(map(len, words)),
            "distinct words": [len(set(of_text)) for of_text in words],
        }
    )
    return counts.assign(**{"lexical density": counts["distinct words"] / counts["words"].clip(lower=1)})


def vocabulary(texts: Sequence[str]) -> pd.DataFrame:
    """Return every word, the commonest first: rank, word, count, and the share of texts that hold it."""
    count, texts_with = Counter[str](), Counter[str]()
    for text in texts:
        words = WORD.findall(text.lower())
        count.update(words)
        texts_with.update(set(words))

    order = sorted(count, key=lambda word: (-count[word], word))
    return pd.DataFrame(
        {
            "rank": range(1, len(order) + 1),
            "word": order,
            "count": [count[word] for word in order],
            "share of documents": [texts_with[word] / len(texts) for word in order],
        }
    )


def trend(x: Array, y: Array, window: int) -> pd.DataFrame:
    """Return x, ascending, and the mean of y over the ``window`` points around each."""
    order = np.argsort(x, kind="stable")
    means = pd.Series(y[order]).rolling(window, center=True, min_periods=max(1, window // 2)).mean()
    return pd.DataFrame({"x": x[order], "y": means}).dropna()


# --- reduction ------------------------------------------------------------------------------------------------------


def principal(x: Array, components: int) -> tuple[Array, pd.DataFrame]:
    """Return the scores on the principal components, (n, components), and a table of the components.

    The table has each component's share of the variance, and the share of all components up to it.
    """
    from sklearn.decomposition import PCA

    count = min(components, *x.shape)
    model = PCA(count, svd_solver="covariance_eigh" if len(x) > x.shape[1] else "full").fit(x)

    share = model.explained_variance_ratio_
    table = pd.DataFrame({"component": range(1, count + 1), "variance": share, "cumulative": share.cumsum()})
    return model.transform(x), table


def reduced(
    x: Array, method: str, seed: int, perplexity: float = 30, neighbours: float = 15, spread: float = 0.1
) -> Array:
    """Lay vectors out in two dimensions, (n, 2), by PCA, t-SNE (of the first ENOUGH principal components) or UMAP.

    Everything runs in one thread, so that it repeats.
    """
    if method == "PCA":
        return principal(x, 2)[0]
    if method == "t-SNE":
        from sklearn.manifold import TSNE

        components = principal(x, ENOUGH)[0]
        model = TSNE(perplexity=min(perplexity, (len(x) - 1) / 3), init="pca", random_state=seed)
        return model.fit_transform(components)

    import warnings

    from sklearn.neighbors import NearestNeighbors

    from strata.sae.engine.compiled import keep_umap

    # UMAP's own search for neighbours would be compiled anew, which takes 5 s.
    count = min(int(neighbours), len(x) - 1)
    distance, order = NearestNeighbors(n_neighbors=count).fit(x).kneighbors(x)
    near = order.astype(np.int32), distance.astype(np.float32), None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # UMAP warns that a seed leaves it one thread
        from umap import UMAP

        keep_umap()
        model = UMAP(n_neighbors=count, min_dist=spread, random_state=seed, n_jobs=1, precomputed_knn=near)
        return np.asarray(model.fit_transform(x))


def density(x: Array, neighbours: int) -> Array:
    """Return one over the mean distance to the nearest ``neighbours``, (n,). Copies of a vector count as very near."""
    from sklearn.neighbors import NearestNeighbors

    count = min(neighbours, len(x) - 1)
    distance, _ = NearestNeighbors(n_neighbors=count).fit(x).kneighbors()
    return 1 / np.maximum(distance.mean(1), 1e-6)


# --- clustering -----------------------------------------------------------------------------------------------------


def scaled(x: Array) -> Array:
    """Scale every column to mean 0 and deviation 1. A column that never changes becomes 0."""
    from sklearn.preprocessing import StandardScaler

    return StandardScaler().fit_transform(x)


def kmeans(x: Array, clusters: int, seed: int, standardise: bool) -> tuple[Array, Array]:
    """Return the cluster of each vector, (n,), and its distance to the cluster's centre, (n,).

    Clusters are numbered by falling size.
    """
    from sklearn.cluster import KMeans

    points = scaled(x) if standardise else x
    model = KMeans(min(clusters, len(x)), n_init=3, random_state=seed)  # pyright: ignore[reportArgumentType]
    labels = model.fit_predict(points)
    distance = np.linalg.norm(points - model.cluster_centers_[labels], axis=1)

    rank_by_size = np.argsort(np.argsort(-np.bincount(labels), kind="stable"))
    return rank_by_size[labels], distance


def silhouette(x: Array, clusters: Array, seed: int) -> float | None:
    """Return the mean silhouette of at most JUDGED vectors.

    Return None where they are all of one cluster, or each of its own.
    """
    from sklearn.metrics import silhouette_score

    drawn = np.random.default_rng(seed).permutation(len(x))[:JUDGED]
    if not 1 < len(set(clusters[drawn])) < len(drawn):
        return None
    return float(silhouette_score(x[drawn], clusters[drawn]))


def agreement(clusters: Array, labels: Sequence[str | None], seed: int) -> tuple[float, float] | None:
    """Return the adjusted mutual information of clusters and labels, and its mean with the labels shuffled.

    1 means that they are the same, 0 is chance. Vectors without a label do not count. Return None where there are
    fewer than two labels.
    """
    from sklearn.metrics import adjusted_mutual_info_score

    labelled = np.array([label is not None for label in labels], bool)
    label_of = np.array([label for label in labels if label is not None], str)
    if len(set(label_of)) < 2:
        return None

    random = np.random.default_rng(seed)
    chance = [adjusted_mutual_info_score(random.permutation(label_of), clusters[labelled]) for _ in range(SHUFFLES)]
    return float(adjusted_mutual_info_score(label_of, clusters[labelled])), float(np.mean(chance))


# --- similarity -----------------------------------------------------------------------------------------------------


def unit(x: Array) -> Array:
    """Scale rows to length 1."""
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def pairs(x: Array, seed: int) -> pd.DataFrame:
    """Compare pairs of vectors, all pairs or PAIRS of them: i, j, cosine, chance and Euclidean distance.

    Chance is the cosine of the same vectors after each column was shuffled by itself.
    """
    random = np.random.default_rng(seed)
    all_pairs = len(x) * (len(x) - 1) // 2 <= PAIRS
    i, j = np.triu_indices(len(x), 1) if all_pairs else random.integers(len(x), size=(2, PAIRS))
    i, j = i[i != j], j[i != j]

    directions, shuffled = unit(x), unit(random.permuted(x, axis=0))
    columns = {
        "i": i,
        "j": j,
        "cosine": _by_pair(_dot, directions, i, j),
        "chance": _by_pair(_dot, shuffled, i, j),
        "distance": _by_pair(lambda a, b: np.linalg.norm(a - b, axis=1), x, i, j),
    }
    return pd.DataFrame(columns)


def _dot(a: Array, b: Array) -> Array:
    """Return the product of each row of ``a`` with the row of ``b`` beside it, (n,)."""
    return np.einsum("nd,nd->n", a, b)


def _by_pair(measure: Callable[[Array, Array], Array], x: Array, i: Array, j: Array, block: int = 2048) -> Array:
    """Measure the rows ``i`` of x against the rows ``j``, (pairs,), a block of pairs at a time."""
    parts = [measure(x[i[first : first + block]], x[j[first : first + block]]) for first in range(0, len(i), block)]
    return np.concatenate(parts)


def histogram(columns: dict[str, Array], bins: int) -> pd.DataFrame:
    """Count each column's values over common bins: kind (the column), low, high, and the share of its values."""
    everything = np.concatenate(list(columns.values()))
    edges = np.histogram_bin_edges(everything[np.isfinite(everything)], bins)
    parts = [
        pd.DataFrame(
            {"kind": kind, "low": edges[:-1], "high": edges[1:], "share": np.histogram(values, edges)[0] / len(values)}
        )
        for kind, values in columns.items()
    ]
    return pd.concat(parts, ignore_index=True)


def decay(found: pd.DataFrame, bins: int) -> pd.DataFrame:
    """Group pairs by their distance: distance (the middle), mean cosine, low and high (one deviation away), pairs.

    ``found``: what :func:`pairs` returned.
    """
    edges = np.linspace(found["distance"].min(), found["distance"].max(), bins + 1)
    place = np.clip(np.searchsorted(edges, found["distance"], side="right") - 1, 0, bins - 1)
    groups = found.groupby(place)["cosine"]
    mean, spread, count = groups.mean(), groups.std().fillna(0), groups.size()

    middle = (edges[:-1] + edges[1:])[mean.index] / 2
    table = {"distance": middle, "cosine": mean, "low": mean - spread, "high": mean + spread, "pairs": count}
    return pd.DataFrame(table).reset_index(drop=True)


def closest(x: Array, documents: Array, most: int, apart: bool) -> pd.DataFrame:
    """Return the ``most`` pairs with the largest cosine: i, j, cosine. ``apart``: only pairs from two documents.

    512 rows of the (n, n) cosines are in memory at a time.
    """
    directions, block = unit(x), 512
    best = pd.DataFrame({"i": [], "j": [], "cosine": []}).astype({"i": int, "j": int})
    for first in range(0, len(x), block):
        cosine = directions[first : first + block] @ directions.T
        i = np.arange(first, first + len(cosine))

        # -2 is below every cosine: no pair twice, none with itself.
        cosine[np.arange(len(x)) <= i[:, None]] = -2
        if apart:
            cosine[documents[i][:, None] == documents] = -2

        flat = np.argpartition(cosine, -min(most, cosine.size), axis=None)[-most:]
        part = pd.DataFrame({"i": i[flat // len(x)], "j": flat % len(x), "cosine": cosine.ravel()[flat]})
        best = pd.concat([best, part[part["cosine"] > -2]]).nlargest(most, "cosine")
    return best.sort_values(["cosine", "i", "j"], ascending=[False, True, True]).reset_index(drop=True)


def reranked(codes: Array) -> tuple[Array, Array]:
    """Order the latents that are active in any row of ``codes`` (row, latent); return them, and their columns.

    They go by falling code of the first row, then by falling mean code of all rows.
    """
    active = np.flatnonzero((codes > 0).any(0))
    order = active[np.lexsort((-codes[:, active].mean(0), -codes[0, active]))]
    return order, codes[:, order]


def alike(codes: Array) -> pd.DataFrame:
    """Compare every two rows of ``codes``: one, other, Kendall's tau over all latents active in any row, cosine."""
    from scipy.stats import kendalltau

    _, ranked = reranked(codes)
    cosine = unit(ranked) @ unit(ranked).T

    lines = []
    for i in range(len(ranked)):
        for j in range(len(ranked)):
            tau: Any = kendalltau(ranked[i], ranked[j])[0] if ranked.shape[1] > 1 else np.nan
            lines.append({"one": i, "other": j, "kendall": float(tau), "cosine": float(cosine[i, j])})
    return pd.DataFrame(lines)
