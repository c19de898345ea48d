"""What the tabs compute: arrays in, tables out. Nothing here knows of a browser, and all that is drawn takes a seed."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

WORD = re.compile(r"\w+")
ENOUGH = 50  # principal components that t-SNE is given
PAIRS = 50_000  # pairs of vectors that are compared, at the most
JUDGED = 2000  # vectors that a silhouette looks at: its time grows with their square
SHUFFLES = 10
Array = NDArray[Any]


# --- documents ------------------------------------------------------------------------------------------------------


def lengths(texts: Sequence[str]) -> pd.DataFrame:
    """Of each text: characters, words, distinct words, and lexical density, distinct words a word."""
    words = [WORD.findall(text.lower()) for text in texts]
    found = pd.DataFrame(
        {
            "characters": list(map(len, texts)),
            "words": list(map(len, words)),
            "distinct words": [len(set(w)) for w in words],
        }
    )
    return found.assign(**{"lexical density": found["distinct words"] / found["words"].clip(lower=1)})


def vocabulary(texts: Sequence[str]) -> pd.DataFrame:
    """Every word, the commonest first: rank, word, count, and the share of texts that hold it."""
    count, holding = Counter[str](), Counter[str]()
    for text in texts:
        words = WORD.findall(text.lower())
        count.update(words)
        holding.update(set(words))
    order = sorted(count, key=lambda word: (-count[word], word))
    return pd.DataFrame(
        {
            "rank": range(1, len(order) + 1),
            "word": order,
            "count": [count[word] for word in order],
            "share of documents": [holding[word] / len(texts) for word in order],
        }
    )


def trend(x: Array, y: Array, window: int) -> pd.DataFrame:
    """x and the mean of y over the ``window`` points about it in the order of x."""
    order = np.argsort(x, kind="stable")
    means = pd.Series(y[order]).rolling(window, center=True, min_periods=max(1, window // 2)).mean()
    return pd.DataFrame({"x": x[order], "y": means}).dropna()


# --- reduction ------------------------------------------------------------------------------------------------------


def principal(x: Array, components: int) -> tuple[Array, pd.DataFrame]:
    """(n, components) scores, and of each component its share of the variance and the share up to it."""
    from sklearn.decomposition import PCA

    count = min(components, *x.shape)
    model = PCA(count, svd_solver="covariance_eigh" if len(x) > x.shape[1] else "full").fit(x)
    share = model.explained_variance_ratio_
    table = pd.DataFrame({"component": range(1, count + 1), "variance": share, "cumulative": share.cumsum()})
    return model.transform(x), table


def reduced(
    x: Array, method: str, seed: int, perplexity: float = 30, neighbours: float = 15, spread: float = 0.1
) -> Array:
    """(n, 2) by PCA, t-SNE (of the first 50 principal components) or UMAP; one thread, so that it repeats."""
    if method == "PCA":
        return principal(x, 2)[0]
    if method == "t-SNE":
        from sklearn.manifold import TSNE

        few = principal(x, ENOUGH)[0]
        return TSNE(perplexity=min(perplexity, (len(x) - 1) / 3), init="pca", random_state=seed).fit_transform(few)
    import warnings

    from sklearn.neighbors import NearestNeighbors

    from strata.sae.engine.compiled import keep_umap

    count = min(int(neighbours), len(x) - 1)
    away, order = NearestNeighbors(n_neighbors=count).fit(x).kneighbors(x)
    near = order.astype(np.int32), away.astype(np.float32), None  # UMAP's own search is compiled anew, for 5 s
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a seed costs UMAP its threads, and it says so
        from umap import UMAP

        keep_umap()
        model = UMAP(n_neighbors=count, min_dist=spread, random_state=seed, n_jobs=1, precomputed_knn=near)
        return np.asarray(model.fit_transform(x))


def density(x: Array, neighbours: int) -> Array:
    """(n,) one over the mean distance to the nearest ``neighbours``; repeats of a vector count as very near."""
    from sklearn.neighbors import NearestNeighbors

    count = min(neighbours, len(x) - 1)
    away, _ = NearestNeighbors(n_neighbors=count).fit(x).kneighbors()
    return 1 / np.maximum(away.mean(1), 1e-6)


# --- clustering -----------------------------------------------------------------------------------------------------


def scaled(x: Array) -> Array:
    """Every column with mean 0 and deviation 1; one that never changes is 0."""
    from sklearn.preprocessing import StandardScaler

    return StandardScaler().fit_transform(x)


def kmeans(x: Array, clusters: int, seed: int, standardise: bool) -> tuple[Array, Array]:
    """(n,) cluster of each vector, numbered by falling size, and its distance to the centre."""
    from sklearn.cluster import KMeans

    given = scaled(x) if standardise else x
    model = KMeans(min(clusters, len(x)), n_init=3, random_state=seed)  # pyright: ignore[reportArgumentType]
    labels = model.fit_predict(given)
    away = np.linalg.norm(given - model.cluster_centers_[labels], axis=1)
    return np.argsort(np.argsort(-np.bincount(labels), kind="stable"))[labels], away


def silhouette(x: Array, clusters: Array, seed: int) -> float | None:
    """The mean silhouette of at most JUDGED vectors; None of a single cluster."""
    from sklearn.metrics import silhouette_score

    kept = np.random.default_rng(seed).permutation(len(x))[:JUDGED]
    if not 1 < len(set(clusters[kept])) < len(kept):
        return None
    return float(silhouette_score(x[kept], clusters[kept]))


def agreement(clusters: Array, labels: Sequence[str | None], seed: int) -> tuple[float, float] | None:
    """Adjusted mutual information of clusters and labels (1: the same, 0: chance), and its mean with labels shuffled.
    None where there are no two labels."""
    from sklearn.metrics import adjusted_mutual_info_score

    there = np.array([label is not None for label in labels], bool)
    named = np.array([label for label in labels if label is not None], str)
    if len(set(named)) < 2:
        return None
    random = np.random.default_rng(seed)
    chance = [adjusted_mutual_info_score(random.permutation(named), clusters[there]) for _ in range(SHUFFLES)]
    return float(adjusted_mutual_info_score(named, clusters[there])), float(np.mean(chance))


# --- similarity -----------------------------------------------------------------------------------------------------


def unit(x: Array) -> Array:
    """Rows of length 1."""
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def pairs(x: Array, seed: int) -> pd.DataFrame:
    """Pairs of vectors, all of them or PAIRS drawn: cosine, Euclidean distance, and the cosine of chance, of the same
    vectors with each column shuffled by itself."""
    random = np.random.default_rng(seed)
    few = len(x) * (len(x) - 1) // 2 <= PAIRS
    i, j = np.triu_indices(len(x), 1) if few else random.integers(len(x), size=(2, PAIRS))
    i, j = i[i != j], j[i != j]
    directions, shuffled = unit(x), unit(random.permuted(x, axis=0))
    found = {"i": i, "j": j}
    for name, y in (("cosine", directions), ("chance", shuffled)):
        found[name] = _by_pair(lambda a, b: np.einsum("nd,nd->n", a, b), y, i, j)
    return pd.DataFrame({**found, "distance": _by_pair(lambda a, b: np.linalg.norm(a - b, axis=1), x, i, j)})


def _by_pair(measure: Callable[[Array, Array], Array], x: Array, i: Array, j: Array, block: int = 2048) -> Array:
    parts = [measure(x[i[at : at + block]], x[j[at : at + block]]) for at in range(0, len(i), block)]
    return np.concatenate(parts)


def histogram(columns: dict[str, Array], bins: int) -> pd.DataFrame:
    """Counts over common bins: kind, low, high, share."""
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
    """Pairs by their distance: distance (the middle), mean cosine, low and high (one deviation), pairs."""
    edges = np.linspace(found["distance"].min(), found["distance"].max(), bins + 1)
    place = np.clip(np.searchsorted(edges, found["distance"], side="right") - 1, 0, bins - 1)
    groups = found.groupby(place)["cosine"]
    mean, spread, count = groups.mean(), groups.std().fillna(0), groups.size()
    middle = (edges[:-1] + edges[1:])[mean.index] / 2
    table = {"distance": middle, "cosine": mean, "low": mean - spread, "high": mean + spread, "pairs": count}
    return pd.DataFrame(table).reset_index(drop=True)


def closest(x: Array, documents: Array, most: int, apart: bool) -> pd.DataFrame:
    """The ``most`` pairs of the largest cosine: i, j, cosine. ``apart``: of two documents."""
    directions, block = unit(x), 512
    best = pd.DataFrame({"i": [], "j": [], "cosine": []}).astype({"i": int, "j": int})
    for first in range(0, len(x), block):
        cosine = directions[first : first + block] @ directions.T
        i = np.arange(first, first + len(cosine))
        cosine[np.arange(len(x)) <= i[:, None]] = -2
        if apart:
            cosine[documents[i][:, None] == documents] = -2
        flat = np.argpartition(cosine, -min(most, cosine.size), axis=None)[-most:]
        part = pd.DataFrame({"i": i[flat // len(x)], "j": flat % len(x), "cosine": cosine.ravel()[flat]})
        best = pd.concat([best, part[part["cosine"] > -2]]).nlargest(most, "cosine")
    return best.sort_values(["cosine", "i", "j"], ascending=[False, True, True]).reset_index(drop=True)


def reranked(codes: Array) -> tuple[Array, Array]:
    """The latents active in any of ``codes`` (row, latent), by falling code of the first row, then of the mean of the
    others; and those columns of ``codes``."""
    active = np.flatnonzero((codes > 0).any(0))
    order = active[np.lexsort((-codes[:, active].mean(0), -codes[0, active]))]
    return order, codes[:, order]


def alike(codes: Array) -> pd.DataFrame:
    """Every two rows of ``codes``: one, other, Kendall's tau over all latents active in any row, and cosine."""
    from scipy.stats import kendalltau

    _, ranked = reranked(codes)
    cosine = unit(ranked) @ unit(ranked).T
    lines = []
    for i in range(len(ranked)):
        for j in range(len(ranked)):
            tau: Any = kendalltau(ranked[i], ranked[j])[0] if ranked.shape[1] > 1 else np.nan
            lines.append({"one": i, "other": j, "kendall": float(tau), "cosine": float(cosine[i, j])})
    return pd.DataFrame(lines)
