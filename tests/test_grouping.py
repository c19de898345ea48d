"""Which latents are alike, and what families they make: by brute force, scikit-learn and planted groups."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse import csr_array
from scipy.spatial.distance import squareform
from sklearn.cluster import DBSCAN, HDBSCAN
from sklearn.metrics import (
    adjusted_rand_score,
    calinski_harabasz_score,
    davies_bouldin_score,
    silhouette_samples,
)

from strata.families import condensed, methods, quality
from strata.families.knobs import Cluster
from strata.families.read import DEAD, NOISE, cut, numbered
from strata.families.similarity import Moments, Weights, distances, unit
from strata.families.stability import agreement
from strata.interpretation.read import Columns
from strata.run.door import BadInput
from strata.run.params import check

ROOT = Path(__file__).resolve().parents[1]
DEFAULTS: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["cluster"]


def knobs(**changes: Any) -> Cluster:
    """The default params with other values; nested sections are merged."""
    whole = {
        key: {**value, **changes.pop(key, {})} if isinstance(value, dict) else changes.pop(key, value)
        for key, value in DEFAULTS.items()
    }
    return check({**whole, **changes}, Cluster, "cluster")


def sparse(rng: np.random.Generator, rows: int, latents: int) -> np.ndarray:
    """Codes, most of them 0; latent 0 never fires, 1 and 2 are equal, 3 fires everywhere the same."""
    codes = np.maximum(rng.normal(-1, 1, (rows, latents)), 0).astype(np.float32)
    codes[:, 0], codes[:, 2], codes[:, 3] = 0, codes[:, 1], 2.0
    return codes


def columns(codes: np.ndarray) -> Columns:
    latent, row = codes.T.nonzero()
    starts = np.concatenate([[0], np.bincount(latent, minlength=codes.shape[1]).cumsum()])
    return Columns(0, starts, row, codes[row, latent])


def moments(*parts: tuple[np.ndarray, np.ndarray]) -> Moments:
    """Of shards of codes with the weight of each row."""
    found = Moments.empty(parts[0][0].shape[1])
    for codes, weight in parts:
        found.add(columns(codes), weight)
    return found


def distance_of(vectors: np.ndarray) -> np.ndarray:
    """Condensed cosine distances."""
    found = 1 - unit(vectors) @ unit(vectors).T
    return found[np.triu_indices(len(vectors), 1)].astype(np.float32)


def of_groups(seed: int = 0, noise: float = 0.12) -> tuple[np.ndarray, np.ndarray]:
    """Three groups of 20 directions and 10 at random, and the group of each, -1 for the latter."""
    rng = np.random.default_rng(seed)
    centres = unit(rng.normal(size=(3, 48)))
    near = np.repeat(centres, 20, axis=0) + noise * rng.normal(size=(60, 48))
    truth = np.concatenate([np.repeat(np.arange(3), 20), np.full(10, -1)])
    return np.concatenate([near, rng.normal(size=(10, 48))]), truth


# --- similarities -------------------------------------------------------------------------------------------------


def brute(decoder: np.ndarray, profile: np.ndarray, codes: np.ndarray, weights: Weights) -> np.ndarray:
    """(n, n) distances, pair by pair, in float64."""
    n = len(decoder)
    found = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            a, b, on, off = codes[:, i].astype(float), codes[:, j].astype(float), codes[:, i] > 0, codes[:, j] > 0
            flat = a.std() == 0 or b.std() == 0
            norms = np.linalg.norm(profile[i]) * np.linalg.norm(profile[j])
            parts = {
                "decoder": decoder[i] @ decoder[j] / np.linalg.norm(decoder[i]) / np.linalg.norm(decoder[j]),
                "profile": profile[i] @ profile[j] / norms if norms else 0.0,
                "correlation": 0.0 if flat else np.corrcoef(a, b)[0, 1],
                "jaccard": (on & off).sum() / (on | off).sum() if (on | off).any() else 0.0,
            }
            of = weights.model_dump()
            found[i, j] = 1 - sum(of[name] * parts[name] for name in of) / sum(of.values())
    return found


@pytest.mark.parametrize("only", ["decoder", "profile", "correlation", "jaccard", "all"])
def test_similarities_equal_brute_force(only: str):
    rng = np.random.default_rng(1)
    codes, decoder = sparse(rng, 301, 23), rng.normal(size=(23, 7)).astype(np.float32)
    profile = np.maximum(rng.normal(size=(23, 11)), 0)
    profile[0] = 0
    given = {"decoder": 1.0, "profile": 0.5, "correlation": 0.7, "jaccard": 2.0}
    weights = Weights(**{name: value if only in (name, "all") else 0.0 for name, value in given.items()})
    parts = [(codes[:100], np.ones(100)), (codes[100:], np.ones(201))]
    found = distances(decoder, csr_array(profile), moments(*parts), weights)
    expected = brute(decoder, profile, codes, weights)[np.triu_indices(23, 1)]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_a_rows_weight_is_how_often_it_counts():
    rng = np.random.default_rng(2)
    codes, times = sparse(rng, 60, 9), rng.integers(0, 4, 60)
    weighted, repeated = (
        moments((codes, times.astype(float))),
        moments((np.repeat(codes, times, 0), np.ones(times.sum()))),
    )
    for name in ("products", "both", "sums", "squares", "active", "rows"):
        np.testing.assert_allclose(getattr(weighted, name), getattr(repeated, name), rtol=1e-6)


def test_blocks_of_latents_do_not_show(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(3)
    codes, decoder, profile = sparse(rng, 50, 20), rng.normal(size=(20, 5)), csr_array(rng.random((20, 4)))
    weights, found = Weights(decoder=1, profile=1, correlation=1, jaccard=1), []
    for block in (3, 512):
        monkeypatch.setattr("strata.families.similarity.BLOCK", block)
        found.append(distances(decoder, profile, moments((codes, np.ones(50))), weights))
    np.testing.assert_allclose(*found, atol=1e-6)


# --- the tree, and numbers of clusters ----------------------------------------------------------------------------


def test_clusters_are_numbered_by_size_then_by_first_member():
    assert numbered(np.array([7, 4, 4, NOISE, 9, 7, 3, DEAD])).tolist() == [0, 1, 1, NOISE, 2, 0, 3, DEAD]
    assert numbered(np.array([NOISE, NOISE])).tolist() == [NOISE, NOISE]


def test_a_tree_is_cut_into_exactly_so_many():
    tree = linkage(np.random.default_rng(4).normal(size=(80, 3)), "average")
    for count in (1, 2, 9, 80):
        labels = cut(tree, count)
        assert labels.max() + 1 == count and (np.diff(np.bincount(labels)) <= 0).all()
        assert adjusted_rand_score(labels, fcluster(tree, count, "maxclust")) == 1
    equal = linkage(np.ones(6), "average")  # scipy's maxclust cannot make 2 of 4 that are equally far apart
    assert cut(equal, 2).max() + 1 == 2
    assert cut(np.empty((0, 4)), 1).tolist() == [0]
    with pytest.raises(BadInput, match="5 clusters of 4 living latents cannot be: ask for 1 to 4"):
        cut(equal, 5)


# --- loops over distances -----------------------------------------------------------------------------------------


def test_loops_equal_numpy():
    rng = np.random.default_rng(5)
    short = distance_of(rng.normal(size=(40, 6)))
    square, labels = squareform(short), rng.integers(-1, 4, 40)
    assert np.array_equal(condensed.row(short, 40, 17), square[17])
    expected = np.stack([square[:, labels == c].sum(1) for c in range(4)], axis=1)
    np.testing.assert_allclose(condensed.summed(short, labels, 4), expected, rtol=1e-5)
    near, far = condensed.nearest(short, 40, 5)
    first = square.copy()
    np.fill_diagonal(first, -1)
    order = np.argsort(first, axis=1, kind="stable")[:, :5]
    assert np.array_equal(near, order) and np.array_equal(far, np.take_along_axis(square, order, 1))


def test_measures_equal_scikit_learn():
    rng = np.random.default_rng(6)
    vectors = unit(rng.normal(size=(60, 5)))
    labels = numbered(rng.integers(0, 5, 60))
    labels[-1] = 5  # a cluster of one
    sums = condensed.summed(distance_of(vectors), labels, 6)
    cosine: Any = silhouette_samples(vectors, labels, metric="cosine")
    found = quality.silhouettes(sums, labels)
    assert found is not None
    np.testing.assert_allclose(found, cosine, atol=1e-5)
    measured = quality.indices(sums, labels)
    assert measured["silhouette"] == pytest.approx(np.mean(found), abs=1e-9)
    assert measured["davies_bouldin"] == pytest.approx(davies_bouldin_score(vectors, labels), rel=1e-4)
    assert measured["calinski_harabasz"] == pytest.approx(calinski_harabasz_score(vectors, labels), rel=1e-4)
    assert measured["noise_ratio"] == 0


def test_noise_is_in_no_measure_but_its_own():
    vectors, truth = of_groups()
    with_noise = quality.indices(condensed.summed(distance_of(vectors), truth, 3), truth)
    without = quality.indices(condensed.summed(distance_of(vectors[:60]), truth[:60], 3), truth[:60])
    assert with_noise["noise_ratio"] == pytest.approx(1 / 7)
    assert {**with_noise, "noise_ratio": 0} == pytest.approx({**without, "noise_ratio": 0})


def test_a_medoid_lies_inside_and_is_nearest_to_the_others():
    vectors, truth = of_groups(noise=0.3)
    distance = distance_of(vectors)
    square = squareform(distance)
    for c, medoid in enumerate(quality.medoids(condensed.summed(distance, truth, 3), truth)):
        members = np.flatnonzero(truth == c)
        assert medoid in members
        assert square[medoid, members].sum() == pytest.approx(square[np.ix_(members, members)].sum(1).min(), rel=1e-6)


# --- methods ------------------------------------------------------------------------------------------------------

SETTINGS: dict[str, dict[str, Any]] = {
    "agglomerative": {"clusters": 13},
    "dbscan": {},
    "hdbscan": {"min_samples": 2, "min_cluster_size": 2},
    "kmeans": {"clusters": 3},
}


@pytest.mark.parametrize("seed", range(3))
def test_planted_groups_are_found_by_every_method(seed: int):
    vectors, truth = of_groups(seed)
    distance, planted = distance_of(vectors), truth >= 0
    found = {name: methods.group(distance, 70, knobs(method=name, **how), 0) for name, how in SETTINGS.items()}
    found["by distance"] = methods.group(distance, 70, knobs(distance=0.6), 0)
    for name, grouped in found.items():
        assert agreement(truth[planted], grouped.labels[planted]) >= 0.9, name
    assert [found[name].parameters["method"] for name in SETTINGS] == list(SETTINGS)
    labels = {tuple(found[name].labels) for name in ("dbscan", "kmeans", "hdbscan")}
    assert len(labels) == 3, "another method, other labels"
    assert found["dbscan"].parameters.keys() >= {"eps", "min_samples"}
    assert found["hdbscan"].parameters.keys() >= {"min_cluster_size", "min_samples"}
    assert found["kmeans"].parameters["clusters"] == 3


def test_every_eps_tried_is_told_and_possible():
    vectors, truth = of_groups()
    found = methods.group(distance_of(vectors), 70, knobs(method="dbscan", eps_tries=15), 0)
    eps = [line["eps"] for line in found.tried]
    assert len(eps) == 15 and all(0 < value <= 2 for value in eps)
    best = max(found.tried, key=lambda line: -1 if line["score"] is None else line["score"])
    assert found.parameters["eps"] == best["eps"] and best["clusters"] == 3
    assert best["noise"] == (found.labels == NOISE).sum() and (found.labels[truth < 0] == NOISE).sum() >= 8
    given = methods.group(distance_of(vectors), 70, knobs(method="dbscan", eps=best["eps"]), 0)
    assert np.array_equal(given.labels, found.labels) and not given.tried


@pytest.mark.parametrize("eps", [0.3, 0.5, 0.65, 0.8, 1.4])
def test_dbscan_is_scikit_learns(eps: float):
    distance = distance_of(np.random.default_rng(7).normal(size=(90, 5)) + 0.6)
    ours = methods.group(distance, 90, knobs(method="dbscan", eps=eps, min_samples=4), 0).labels
    theirs = DBSCAN(eps=eps, min_samples=4, metric="precomputed").fit(squareform(distance))
    core = theirs.core_sample_indices_
    assert np.array_equal(ours == NOISE, theirs.labels_ == -1)
    assert len(core) == 0 or adjusted_rand_score(ours[core], theirs.labels_[core]) == 1


@pytest.mark.parametrize("samples, size", [(2, 3), (4, 5), (1, 2)])
def test_hdbscan_given_a_tree_is_hdbscan_given_everything(samples: int, size: int):
    vectors, _ = of_groups(noise=0.25)
    distance = distance_of(vectors)
    ours = methods.group(distance, 70, knobs(method="hdbscan", min_samples=samples, min_cluster_size=size), 0).labels
    model = HDBSCAN(metric="precomputed", min_samples=samples, min_cluster_size=size, copy=True)  # pyright: ignore[reportArgumentType]
    theirs = model.fit_predict(squareform(distance).astype(np.float64))
    assert np.array_equal(ours == NOISE, theirs == -1)
    assert adjusted_rand_score(ours, theirs) == 1


def test_kmeans_repeats_and_has_so_many_clusters_even_of_equal_latents():
    vectors, _ = of_groups()
    distance = distance_of(vectors)
    for count in (1, 7, 70):
        some = [methods.group(distance, 70, knobs(method="kmeans", clusters=count), 5).labels for _ in range(2)]
        assert np.array_equal(some[0], some[1]) and len(set(some[0])) == count
    same = methods.group(np.zeros(10, np.float32), 5, knobs(method="kmeans", clusters=3), 0).labels
    assert set(same) == {0, 1, 2}


@pytest.mark.parametrize("name", ["agglomerative", "kmeans"])
def test_eight_copies_of_each_are_one_family(name: str):
    rng = np.random.default_rng(8)
    source = np.tile(np.arange(32), 8)
    decoder, codes = rng.normal(size=(32, 16))[source], sparse(rng, 400, 36)[:, 4:][:, source]
    weights = Weights(decoder=1, profile=0, correlation=1, jaccard=1)
    distance = distances(decoder, csr_array((256, 1)), moments((codes, np.ones(400))), weights)
    labels = methods.group(distance, 256, knobs(method=name, clusters=32), 0).labels
    assert adjusted_rand_score(source, labels) == 1
    medoids = quality.medoids(condensed.summed(distance, labels, 32), labels)
    assert np.array_equal(labels[medoids], np.arange(32))


def test_more_clusters_than_living_latents_is_one_sentence():
    sentence = "cluster.clusters is 512, but only 70 latents are living; ask for at most 70, or for a share of them"
    for name in ("agglomerative", "kmeans"):
        with pytest.raises(BadInput, match=re.escape(sentence)):
            methods.group(distance_of(of_groups()[0]), 70, knobs(method=name, clusters=512), 0)
    assert methods.count_of(0.125, 4096) == 512 and methods.count_of(0.01, 3) == 1


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"clusters": 0}, "cluster.clusters"),
        ({"clusters": 1.5}, "cluster.clusters"),
        ({"eps": 2.5}, "cluster.eps is 2.5, but it should be less than or equal to 2"),
        (
            {"method": "ward"},
            "cluster.method is 'ward', but it should be 'agglomerative', 'dbscan', 'hdbscan' or 'kmeans'",
        ),
        ({"weights": {"decoder": 0.0, "correlation": 0.0, "jaccard": 0.0}}, "count for nothing; give at least one"),
        (
            {"weights": {"decoder": -1.0}},
            "cluster.weights.decoder is -1.0, but it should be greater than or equal to 0",
        ),
    ],
)
def test_a_wrong_knob_is_one_sentence(changes: dict[str, Any], sentence: str):
    with pytest.raises(BadInput) as refusal:
        knobs(**changes)
    assert sentence in str(refusal.value)
