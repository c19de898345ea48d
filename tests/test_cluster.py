"""Families of latents: similarities by brute force, methods against scikit-learn and planted groups, scores worked by
hand, and the stage on a layer made by hand."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from planted import EVIL
from safetensors.numpy import save_file
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

from stages.cluster import cluster as room
from stages.cluster import condensed, maps, methods, naming, profiles, quality, selection
from stages.cluster.knobs import Cluster, Selection
from stages.cluster.read import DEAD, NOISE, clustered, cut, numbered, open_clusters
from stages.cluster.similarity import Moments, Weights, distances, unit
from stages.cluster.stability import agreement
from stages.door import BadInput
from stages.files import write_json
from stages.interpret.read import Columns, open_latents
from stages.params import check

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
        monkeypatch.setattr("stages.cluster.similarity.BLOCK", block)
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
    cosine = silhouette_samples(vectors, labels, metric="cosine")
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


# --- profiles, names, selection -----------------------------------------------------------------------------------

# Five latents over four documents; clusters {0, 1}, {2}, {3}, and latent 4 is noise. Threshold 0.1.
#   cluster 0: 8 values, sum 4, largest 2, 4 of 8 above 0.1:
#              (0.4 · 0.5 + 0.3 · 2 + 0.3 · 0.25) ln 3 = 0.875 · 1.0986123 = 0.9612858
#   cluster 1: (0.4 · 1 + 0.3 · 1 + 0) ln 2 = 0.7 · 0.6931472 = 0.4852030: it is lit in every document
#   cluster 2: (0.4 · 0.75 + 0.3 · 3 + 0.3 · 0.1875) ln 2 = 1.25625 · 0.6931472 = 0.8707661
TOY = np.array([[2, 0, 0, 0.5], [0, 1, 0, 0.5], [1, 1, 1, 1], [0, 0, 3, 0], [9, 9, 9, 9]], float)
TOY_LABELS = np.array([0, 0, 1, 2, NOISE])
TOY_SCORES = [0.875 * np.log(3), 0.7 * np.log(2), 1.25625 * np.log(2)]
IDS = np.array([10, 20, 30, 40, 50])


def selected(**changes: Any) -> list[tuple[int, int]]:
    given = check({**DEFAULTS["selection"], **changes}, Selection, "cluster.selection")
    rows = selection.select(csr_array(TOY), TOY_LABELS, IDS, 3, given)
    return [(row["latent"], row["cluster"]) for row in rows]


def test_scores_are_as_worked_by_hand():
    scores = selection.cluster_scores(csr_array(TOY), TOY_LABELS, 3, 0.1)
    np.testing.assert_allclose(scores["composite"], TOY_SCORES)
    assert scores["size"].tolist() == [2, 1, 1] and scores["mean"].tolist() == [0.5, 1, 0.75]
    assert scores["max"].tolist() == [2, 1, 3] and scores["sparsity"].tolist() == [0.25, 0, 0.1875]


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"clusters": "top_n", "top_n": 2}, [(10, 0), (40, 2)]),
        ({"clusters": "top_n", "top_n": 2, "score": "mean"}, [(30, 1), (40, 2)]),
        ({"clusters": "top_n", "top_n": 1, "score": "max"}, [(40, 2)]),
        ({"clusters": "top_n", "top_n": 1, "score": "size"}, [(10, 0)]),
        ({"clusters": "top_n", "top_n": 2, "score": "sparsity"}, [(10, 0), (40, 2)]),
        ({"clusters": "all"}, [(10, 0), (40, 2), (30, 1)]),
        ({"clusters": "all", "per_cluster": 2}, [(10, 0), (20, 0), (40, 2), (30, 1)]),
        ({"clusters": "single", "single": 1}, [(30, 1)]),
        ({"clusters": "single", "single": 0, "latents": "mean"}, [(10, 0)]),
        # 0, 0, 0.5, 2 and 0, 0, 0.5, 1 have the same median, 0.25: the lower latent goes first
        ({"clusters": "single", "single": 0, "latents": "percentile", "percentile": 50.0}, [(10, 0)]),
    ],
)
def test_the_right_clusters_and_their_latents_are_selected(changes: dict[str, Any], expected: list[tuple[int, int]]):
    assert selected(**changes) == expected


def test_a_selected_cluster_that_is_not_there_is_one_sentence():
    with pytest.raises(BadInput, match=r"cluster\.selection\.single is 3, .*; choose one of 0 to 2"):
        selected(clusters="single", single=3)


def test_selection_does_not_depend_on_the_scale_of_the_activations():
    for scale in (1.0, 37.0):
        np.testing.assert_allclose(
            selection.in_units(csr_array(scale * TOY)).toarray(), TOY / TOY[TOY > 0].mean(), rtol=1e-12
        )


def test_profiles_are_as_worked_by_hand():
    profile = profiles.cluster_profiles(csr_array(TOY), TOY_LABELS, 3)
    np.testing.assert_allclose(profile.toarray(), [[1, 0.5, 0, 0.5], [1, 1, 1, 1], [0, 0, 3, 0]])
    top = profiles.top_documents(profile, 2)
    assert [top[name].tolist() for name in ("cluster", "rank", "column")] == [
        [0, 0, 1, 1, 2],
        [0, 1, 0, 1, 0],
        [0, 1, 0, 1, 2],
    ]
    pairs = profiles.correlated(profile, -1.0)
    expected = np.corrcoef(profile.toarray()[0], profile.toarray()[2])[0, 1]
    values = {(a, b): c for a, b, c in zip(*pairs.values(), strict=True)}
    assert values[0, 2] == pytest.approx(expected) and values[0, 1] == values[1, 2] == 0
    assert len(profiles.correlated(profile, 0.5)["cluster"]) == 0


def test_names_are_what_members_say_and_others_do_not():
    said = {1: ["the", "june"], 2: ["the", "may"], 3: ["may", "june"], 4: ["the", "cat"], 5: ["the", "dog"], 6: []}
    found = naming.names([[1, 2, 3], [4, 5], [6]], [1, 4, 6], said, 2)
    assert found == ["june · may", "the", "like latent 6"]
    assert naming._named(r'" June" (80 %), "\"b" (3 %), "\n" (2 %); or the token before is " in" (5 %)', True) == [
        "june",
        '"b',
        "↵",
    ]
    assert naming._named("Names of months", False) == ["names", "of", "months"]


def test_agreement_counts_noise_as_alone():
    a = np.array([0, 0, 1, 1, NOISE, NOISE])
    assert agreement(a, np.array([5, 5, 2, 2, 7, 9])) == 1
    assert agreement(a, np.array([0, 0, 1, 1, 2, 2])) < 1


# --- maps ---------------------------------------------------------------------------------------------------------


def test_principal_components_are_those_of_numpy():
    for shape in ((30, 6), (6, 30)):
        vectors = np.random.default_rng(9).normal(size=shape)
        left, values, _ = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
        np.testing.assert_allclose(
            np.abs(maps.principal(vectors)), np.abs(left[:, :2] * values[:2]), rtol=1e-4, atol=1e-5
        )
    assert maps.principal(np.ones((1, 4))).tolist() == [[0, 0]]
    near, far = maps.neighbours(unit(np.random.default_rng(10).normal(size=(20, 4))), 3)
    assert near[:, 0].tolist() == list(range(20)) and (np.diff(far, axis=1) >= 0).all()


# --- the stage ----------------------------------------------------------------------------------------------------

LATENTS, WIDTH, DOCUMENTS, PER, LOST = 76, 48, 12, 30, (5, 33, 71)  # LOST: dead


def layer(folder: Path, dead: tuple[int, ...] = LOST) -> room.Source:
    """A layer made by hand: the three groups of directions, whose members fire together, in two shards."""
    rng = np.random.default_rng(11)
    vectors, truth = of_groups()
    alive = [latent for latent in range(LATENTS) if latent not in dead]
    decoder = rng.normal(size=(LATENTS, WIDTH)).astype(np.float32)
    group = np.full(LATENTS, -1)
    for latent, vector, of in zip(alive, vectors, truth, strict=False):
        decoder[latent], group[latent] = vector, of
    rows = DOCUMENTS * PER
    fires = rng.random((rows, LATENTS)) < 0.1
    for of in range(3):
        fires[:, group == of] |= (rng.random(rows) < 0.15)[:, None]
    codes = np.where(fires, rng.gamma(2.0, 5.0, (rows, LATENTS)), 0).astype(np.float32)
    codes[:, list(dead)] = 0
    shards, half = [], rows // 2 + 7
    (folder / "codes").mkdir(parents=True)
    for number, (first, end) in enumerate(((0, half), (half, rows))):
        part, name = columns(codes[first:end]), f"codes/shard-{number:05d}.safetensors"
        save_file({"starts": part.starts, "rows": part.rows.astype(np.int32), "values": part.values}, folder / name)
        shards.append({"file": name, "first": first, "rows": end - first, "entries": int(part.starts[-1])})
    mean = codes.reshape(DOCUMENTS, PER, LATENTS).mean(1)
    document, latent = mean.nonzero()
    lists = [[10, 20, 30][of] if of >= 0 else 0 for of in group]
    notes = [
        {
            "latent": j, "source": "rule",
            "text": f'{json.dumps(EVIL[j % len(EVIL)])} (90 %), " word{lists[j]}" (50 %)',
            "balanced_accuracy": 0.9, "balanced_accuracy_chance": 0.5,
        }
        for j in alive
    ]  # fmt: skip
    is_dead = np.isin(np.arange(LATENTS), dead)
    tables = {
        "statistics": pa.table({"latent": np.arange(LATENTS), "dead": is_dead, "kept": ~is_dead & (group != 1)}),
        "documents": pa.table({"latent": latent, "document": document, "mean": mean[document, latent]}).sort_by(
            "latent"
        ),
        "explanations": pa.Table.from_pylist(notes),
    }
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet")
    meta = {"layer": 4, "latents": LATENTS, "rows": rows, "model": {"name": "<tiny>"}, "shards": shards}
    write_json(folder / "meta.json", meta)
    owner = np.repeat(np.arange(DOCUMENTS), PER).astype(np.int32)
    titles: list[str | None] = [f"{EVIL[d % len(EVIL)]} $x_{d}" for d in range(DOCUMENTS)]
    return room.Source(open_latents(folder), decoder, owner, titles, ["a", "b", None] * 4)


SMALL: dict[str, Any] = {"clusters": 16, "stability": {"bootstraps": 1, "reseeds": 1, "shuffles": 5}}
AT_ONCE: dict[str, Any] = {**SMALL, "map": {"method": "pca"}}


def test_the_stage_finds_what_was_planted_and_its_files_open(tmp_path: Path):
    source = layer(tmp_path / "latents")
    report = room.cluster(source, knobs(**AT_ONCE), 0, tmp_path / "out")
    found = open_clusters(tmp_path / "out")
    assert clustered(tmp_path / "out") and found.meta["layer"] == 4 and found.labels.shape == (LATENTS,)
    assert np.array_equal(np.flatnonzero(found.labels == DEAD), LOST) and np.array_equal(found.living, source.living)
    assert found.tree is not None and np.array_equal(cut(found.tree, 16), found.labels[found.living])
    truth = np.repeat(np.arange(3), 20)
    assert adjusted_rand_score(truth, found.labels[found.living][:60]) >= 0.9
    rows = found.table("clusters").to_pylist()
    assert [row["cluster"] for row in rows] == list(range(16)) and sum(row["size"] for row in rows) == LATENTS - len(
        LOST
    )
    assert all(found.labels[row["medoid"]] == row["cluster"] for row in rows)
    medoids = np.flatnonzero(found.table("latents")["medoid"].to_numpy())
    assert medoids.tolist() == sorted(row["medoid"] for row in rows)
    assert all("word" in row["name"] for row in rows[:3])
    kept = source.latents.table("statistics")
    assert kept is not None and found.selected and all(kept["kept"][latent].as_py() for latent in found.selected)
    assert report["stability"]["bootstrap"]["ari"] > 0.8 > 0.2 > abs(report["stability"]["chance"]["ari"])
    assert report["stability"]["reseed"] is None and report["selected"] == len(found.selected)
    assert set(found.meta["files"]) == {path.name for path in (tmp_path / "out").iterdir()} - {"meta.json"}
    for name in found.meta["files"]:
        if name.endswith(".png"):
            assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("method", ["dbscan", "hdbscan", "kmeans"])
def test_the_stage_runs_with_each_method(tmp_path: Path, method: str):
    how = {**AT_ONCE, **{key: value for key, value in SETTINGS[method].items() if key != "min_cluster_size"}}
    report = room.cluster(layer(tmp_path / "latents"), knobs(method=method, **how), 0, tmp_path / "out")
    found = open_clusters(tmp_path / "out")
    assert found.tree is None and report["parameters"]["method"] == found.meta["parameters"]["method"] == method
    assert report["noise"] == (found.labels == NOISE).sum() and (report["noise"] > 0) == (method != "kmeans")
    assert (report["stability"]["reseed"] is not None) == (method == "kmeans")
    assert bool(report["tried"]) == (method == "dbscan")


def test_one_living_latent_and_one_cluster_of_all(tmp_path: Path):
    whole = layer(tmp_path / "latents")
    report = room.cluster(whole, knobs(**{**AT_ONCE, "clusters": 1}), 0, tmp_path / "one")
    assert report["clusters"] == 1 and report["quality"]["silhouette"] is None
    alone = layer(tmp_path / "alone", tuple(range(1, LATENTS)))
    for method in ("agglomerative", "kmeans", "dbscan", "hdbscan"):
        folder = tmp_path / method
        report = room.cluster(alone, knobs(**{**SMALL, "clusters": 1, "method": method}), 0, folder)
        labels = open_clusters(folder).labels
        noisy = method in ("dbscan", "hdbscan")  # too few for a core
        assert labels[0] == (NOISE if noisy else 0) and (labels[1:] == DEAD).all() and report["clusters"] == 1 - noisy
    with pytest.raises(BadInput, match="only 1 latents are living"):
        room.cluster(alone, knobs(clusters=2), 0, tmp_path / "two")
    nothing = layer(tmp_path / "nothing", tuple(range(LATENTS)))
    with pytest.raises(BadInput, match="layer 4 has no living latent"):
        room.check(nothing)


def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path):
    source = layer(tmp_path / "latents")
    with pytest.raises(BadInput, match="is of 76 latents, but the SAE has 75; run interpret again"):
        room.check(replace(source, decoder=source.decoder[1:]))
    with pytest.raises(BadInput, match="is of 360 tokens, but 359 are stored; run interpret again"):
        room.check(replace(source, document=source.document[1:]))


def test_a_damaged_folder_is_one_sentence(tmp_path: Path):
    room.cluster(layer(tmp_path / "latents"), knobs(**AT_ONCE), 0, tmp_path / "out")
    (tmp_path / "out" / "tree.npy").write_bytes(b"")
    with pytest.raises(BadInput, match=r"tree\.npy is no array of numbers; run cluster again"):
        open_clusters(tmp_path / "out")
    (tmp_path / "out" / "latents.parquet").write_bytes(b"")
    with pytest.raises(BadInput, match=r"latents\.parquet is not a whole Parquet file"):
        open_clusters(tmp_path / "out")
    (tmp_path / "out" / "latents.parquet").unlink()
    with pytest.raises(BadInput, match=r"latents\.parquet is missing; run cluster again"):
        open_clusters(tmp_path / "out")
    write_json(tmp_path / "out" / "meta.json", {"skipped": True})
    assert not clustered(tmp_path / "out")
    with pytest.raises(BadInput, match=r"cluster was skipped; set cluster\.run: true"):
        open_clusters(tmp_path / "out")


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)
        self.links += [f"{name}={value}" for name, value in attrs if name in ("src", "href")]
        assert not any(name.startswith("on") for name, _ in attrs)


def test_the_map_asks_for_nothing_and_runs_no_text(tmp_path: Path):
    room.cluster(layer(tmp_path / "latents"), knobs(**AT_ONCE), 0, tmp_path / "out")
    text = (tmp_path / "out" / "map.html").read_text(encoding="utf-8")
    page = Tags(text)
    assert page.links == [] and page.found.count("script") == 3 and "b" not in page.found
    assert "default-src 'none'" in text and "http" not in text.replace("http-equiv", "")
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])  # pyright: ignore[reportOptionalSubscript]
    assert len(data["x"]) == len(data["text"]) == LATENTS - len(LOST)
    assert any(EVIL[0] in said for said in data["text"])


AGAIN = """
import sys; sys.path[:0] = {paths!r}
from pathlib import Path
import test_cluster as t
t.room.cluster(t.layer(Path(sys.argv[1]) / "latents"), t.knobs(**t.SMALL), 0, Path(sys.argv[1]) / "out")
"""


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(tmp_path: Path):
    script = AGAIN.format(paths=[str(ROOT), str(ROOT / "tests")])
    for name in ("a", "b"):
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / name)],
            check=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": str(ord(name))},
        )
    files = sorted(path.name for path in (tmp_path / "a" / "out").iterdir())
    assert "map.png" in files
    for name in files:
        assert (tmp_path / "a" / "out" / name).read_bytes() == (tmp_path / "b" / "out" / name).read_bytes(), name
