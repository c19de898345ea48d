"""Similarity of latents on plain arrays: brute force, and the numbers of the pipeline's own functions."""

import doctest
from typing import Any

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse import csr_array
from scipy.spatial.distance import cdist, pdist, squareform

import strata
from strata.families.knobs import Weights
from strata.families.similarity import Moments, distances
from strata.front import similarity as room
from strata.interpretation.read import Columns


@pytest.fixture
def codes() -> np.ndarray:
    """(200 rows, 30 latents), latent 4 never fires, 5 fires where 6 does."""
    rng = np.random.default_rng(0)
    z = np.maximum(rng.normal(size=(200, 30)) - 0.8, 0)
    z[:, 4], z[:, 5] = 0, 2 * z[:, 6]
    return z


def brute(z: np.ndarray) -> np.ndarray:
    fires = z > 0
    both = (fires[:, :, None] & fires[:, None]).sum(0)
    either = (fires[:, :, None] | fires[:, None]).sum(0)
    return np.divide(both, either, out=np.zeros(both.shape), where=either > 0)


@pytest.mark.parametrize("block", [7, 1024])
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy, csr_array])
def test_overlaps_are_those_of_the_sets(codes: np.ndarray, kind: Any, block: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(room, "BLOCK", block)
    found, expected = strata.similarity.jaccard(kind(codes)), brute(codes)
    assert np.allclose(found.toarray(), expected) and found.nnz == (expected > 0).sum()
    assert found[5, 6] == 1 and found[4, 4] == 0 and found[5, 5] == 1
    few = strata.similarity.jaccard(kind(codes), least=0.3).toarray()
    assert np.allclose(few, np.where(expected >= 0.3, expected, 0))


def test_overlaps_are_those_that_cluster_weighs(codes: np.ndarray):
    """1 − J is the distance of the pipeline with the weight jaccard alone."""
    latent, row = np.nonzero(codes.T)
    starts = np.concatenate([[0], (codes > 0).sum(0).cumsum()])
    moments = Moments.empty(30)
    moments.add(Columns(0, starts, row, codes.T[latent, row].astype(np.float32)), np.ones(200))
    weights = Weights(decoder=0, profile=0, correlation=0, jaccard=1)
    theirs = distances(np.zeros((30, 2)), csr_array((30, 1)), moments, weights)
    ours = strata.similarity.jaccard(codes).toarray()
    assert np.allclose(1 - ours[np.triu_indices(30, 1)], theirs, atol=1e-6)


def test_distances_of_a_decoder_are_scipys():
    rows = np.random.default_rng(0).normal(size=(40, 8))
    found = strata.similarity.cosine_distances(rows)
    assert np.allclose(found, cdist(rows, rows, "cosine"), atol=1e-5) and found.dtype == np.float32
    sae = strata.SAE(torch.zeros(40, 8), torch.zeros(40), torch.from_numpy(rows).float(), torch.zeros(8))
    assert np.array_equal(strata.similarity.cosine_distances(sae), found)


def test_groups_are_scipys_by_average_linkage():
    rows = np.random.default_rng(1).normal(size=(40, 8))
    labels = strata.similarity.group(strata.similarity.cosine_distances(rows), clusters=6)
    theirs = fcluster(linkage(pdist(rows, "cosine"), "average"), 6, "maxclust")
    assert len(np.unique(labels)) == len(np.unique(np.stack([labels, theirs]), axis=1)[0]) == 6
    size = np.bincount(labels)
    assert (np.diff(size) <= 0).all()
    condensed = pdist(rows, "cosine")
    assert np.array_equal(strata.similarity.group(condensed, clusters=6), labels)


@pytest.mark.parametrize("method", ["kmeans", "dbscan", "hdbscan"])
def test_other_methods_find_what_is_apart(method: str):
    rng = np.random.default_rng(0)
    rows = np.repeat(np.eye(3), 10, axis=0) + 0.01 * rng.normal(size=(30, 3))
    knobs = {"clusters": 3} if method == "kmeans" else {"min_samples": 3}
    labels = strata.similarity.group(strata.similarity.cosine_distances(rows), method, **knobs)
    assert len(set(zip(labels, np.repeat(range(3), 10), strict=True))) == 3


def test_medoids_have_the_least_summed_distance():
    rows = np.random.default_rng(2).normal(size=(30, 4))
    distance = squareform(pdist(rows, "cosine"))
    labels = strata.similarity.group(distance, clusters=4)
    labels[7] = -1
    found = strata.similarity.medoids(distance, labels)
    for number, medoid in enumerate(found):
        members = np.flatnonzero(labels == number)
        sums = distance[np.ix_(members, members)].sum(1)
        assert labels[medoid] == number and sums[members == medoid] == pytest.approx(sums.min(), abs=1e-5)


def test_the_examples_hold():
    assert doctest.testmod(room).failed == 0


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("jaccard", {"codes": [1]}, "codes is of type list; it must be what strata.latents gives"),
        ("jaccard", {"codes": np.ones((2, 2)), "least": 2}, "least is 2; it must be from 0 to 1"),
        ("cosine_distances", {"decoder": np.ones(3)}, r"decoder is an array of float64 \(3,\)"),
        ("cosine_distances", {"decoder": np.full((2, 2), np.nan)}, "decoder holds NaN"),
        ("group", {"distance": np.ones(4)}, "pairs of no whole number"),
        ("group", {"distance": np.ones((3, 3))}, "not symmetric with 0 on its diagonal"),
        ("group", {"distance": np.ones(3), "clusters": 9}, "cluster.clusters is 9"),
        ("group", {"distance": np.ones(3), "method": "ward"}, "cluster.method is 'ward'"),
        ("group", {"distance": np.ones(3), "clustres": 2}, "did you mean cluster.clusters"),
        ("medoids", {"distance": np.ones(3), "labels": [0, 1]}, "a whole number for each of 3"),
        ("medoids", {"distance": np.ones(3), "labels": [0, 2, 2]}, "without a gap"),
    ],
)
def test_arrays_that_are_none(name: str, given: dict[str, Any], said: str):
    with pytest.raises(strata.BadInput, match=said):
        getattr(strata.similarity, name)(**given)
