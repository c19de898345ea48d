"""Lay out directions and documents in two dimensions."""

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strata.families.knobs import Map
from strata.sae.engine.compiled import keep_umap

BLOCK = 1024
EPOCHS = 200  # of UMAP, which by itself takes 500 for few vectors; that looks no better
Floats = NDArray[Any]
Near = tuple[NDArray[np.int64], Floats]  # (n, count) each: the nearest to each vector, itself first; their distances


def layout(vectors: Floats, near: Near | None, knobs: Map, seed: int) -> Floats:
    """Place n unit ``vectors`` (n, width) on a map, (n, 2) float32, so that neighbours stay neighbours.

    ``near``: who is near whom; None: take the nearest by cosine. The result repeats, because UMAP is seeded and runs on
    one thread. UMAP starts from the first two principal components of the vectors. Where there are too few vectors for
    a neighbourhood, these components are the map.
    """
    start = principal(vectors)
    if knobs.method == "pca" or len(vectors) <= knobs.neighbours + 1:
        return start

    order, away = near or neighbours(vectors, knobs.neighbours)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # umap says that it cannot place new points, and that a seed costs threads
        from umap import UMAP

        keep_umap()  # Numba keeps UMAP's compiled loops on the disk, else each process compiles them for 5 s
        model = UMAP(
            n_neighbors=knobs.neighbours,
            min_dist=knobs.spread,
            n_epochs=EPOCHS,
            init=10 * start / max(float(np.abs(start).max()), 1e-12),  # from -10 to 10
            random_state=seed,
            n_jobs=1,
            precomputed_knn=(order.astype(np.int32), away, None),
        )
        return np.asarray(model.fit_transform(vectors), np.float32)


def principal(vectors: Floats) -> Floats:
    """Compute the first two principal components of ``vectors`` (n, width), (n, 2) float32.

    The largest entry of each is positive, so that the sign is not left to chance. Missing components are 0.
    """
    centred = vectors - vectors.mean(0)
    tall = len(vectors) > vectors.shape[1]

    # The smaller of the two Gram matrices, (width, width) or (n, n); its last eigenvectors are the first components.
    gram = centred.T @ centred if tall else centred @ centred.T
    values, axes = np.linalg.eigh(gram.astype(np.float64))
    axes, values = axes[:, ::-1][:, :2], values[::-1][:2]
    components = centred @ axes if tall else axes * np.sqrt(np.maximum(values, 0))

    components = np.pad(components, ((0, 0), (0, 2 - components.shape[1])))
    sign = np.sign(components[np.abs(components).argmax(0), [0, 1]])
    return (components * np.where(sign == 0, 1, sign)).astype(np.float32)


def neighbours(vectors: Floats, count: int) -> Near:
    """Find the ``count`` nearest by cosine to each of the unit ``vectors`` (n, width), itself first.

    Returns their numbers (n, count), and 1 − cosine (n, count).
    """
    order, away = [], []
    for first in range(0, len(vectors), BLOCK):
        block = np.clip(1 - vectors[first : first + BLOCK] @ vectors.T, 0, 2)  # (BLOCK, n)
        block[np.arange(len(block)), np.arange(first, first + len(block))] = -1  # each sorts itself first
        near = np.argsort(block, axis=1, kind="stable")[:, :count]
        order.append(near)
        away.append(np.maximum(np.take_along_axis(block, near, axis=1), 0).astype(np.float32))
    return np.concatenate(order), np.concatenate(away)
