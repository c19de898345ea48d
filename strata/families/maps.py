"""Directions and documents in two dimensions."""

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strata.families.knobs import Map
from strata.sae.engine.compiled import keep_umap

BLOCK = 1024
EPOCHS = 200  # of UMAP; it would take 500 where there are few vectors, and look no better
Floats = NDArray[Any]


Near = tuple[NDArray[np.int64], Floats]  # (n, count): the nearest to each, itself first, and their distances


def layout(vectors: Floats, near: Near | None, knobs: Map, seed: int) -> Floats:
    """(n, 2) float32 for n unit ``vectors``, so that those ``near`` each other, None: by cosine, stay near.

    Seeded and on one thread, so that it repeats. UMAP starts from the principal components of the vectors; so few that
    they have no neighbourhood are laid out by these alone.
    """
    start = principal(vectors)
    if knobs.method == "pca" or len(vectors) <= knobs.neighbours + 1:
        return start
    order, away = near or neighbours(vectors, knobs.neighbours)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # umap says that it cannot place new points, and that a seed costs threads
        from umap import UMAP

        keep_umap()
        model = UMAP(
            n_neighbors=knobs.neighbours,
            min_dist=knobs.spread,
            n_epochs=EPOCHS,
            init=10 * start / max(float(np.abs(start).max()), 1e-12),
            random_state=seed,
            n_jobs=1,
            precomputed_knn=(order.astype(np.int32), away, None),
        )
        return np.asarray(model.fit_transform(vectors), np.float32)


def principal(vectors: Floats) -> Floats:
    """The first two principal components, each with its largest entry positive; zeros where there are fewer."""
    centred = vectors - vectors.mean(0)
    gram = centred.T @ centred if len(vectors) > vectors.shape[1] else centred @ centred.T
    values, axes = np.linalg.eigh(gram.astype(np.float64))
    axes, values = axes[:, ::-1][:, :2], values[::-1][:2]
    found = centred @ axes if len(vectors) > vectors.shape[1] else axes * np.sqrt(np.maximum(values, 0))
    found = np.pad(found, ((0, 0), (0, 2 - found.shape[1])))
    sign = np.sign(found[np.abs(found).argmax(0), [0, 1]])
    return (found * np.where(sign == 0, 1, sign)).astype(np.float32)


def neighbours(vectors: Floats, count: int) -> Near:
    """(n, count) the nearest by cosine, itself first, and 1 − cosine."""
    order, away = [], []
    for first in range(0, len(vectors), BLOCK):
        block = np.clip(1 - vectors[first : first + BLOCK] @ vectors.T, 0, 2)
        block[np.arange(len(block)), np.arange(first, first + len(block))] = -1
        near = np.argsort(block, axis=1, kind="stable")[:, :count]
        order.append(near)
        away.append(np.maximum(np.take_along_axis(block, near, axis=1), 0).astype(np.float32))
    return np.concatenate(order), np.concatenate(away)
