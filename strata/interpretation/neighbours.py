"""Find the latents of a layer that write nearly the same direction."""

from typing import Any

import numpy as np

BLOCK = 1024  # latents at a time: 1024 × 16,384 cosines are 64 MB


def nearest(decoder: np.ndarray, alive: np.ndarray, top: int) -> dict[str, Any]:
    """Find for each living latent the ``top`` living latents whose decoder directions have the greatest cosine with it.

    ``decoder``: (latent, width). ``alive``: bool (latent,). A dead latent has no neighbours and is none. Of equal
    cosines the lower latent comes first. Returns the columns of `neighbours.parquet`, ordered by latent and rank.
    """
    ids = np.flatnonzero(alive)
    unit = decoder[ids] / np.maximum(np.linalg.norm(decoder[ids], axis=1, keepdims=True), 1e-12)

    # Places in `ids`, and cosines, of each block of latents: (latents of the block, count).
    count = max(0, min(top, len(ids) - 1))
    neighbours, cosines = [np.empty((0, count), np.int64)], [np.empty((0, count), np.float32)]
    for first in range(0, len(ids), BLOCK):
        cosine = unit[first : first + BLOCK] @ unit.T
        cosine[np.arange(len(cosine)), np.arange(first, first + len(cosine))] = -np.inf  # not itself
        near = np.argsort(-cosine, axis=1, kind="stable")[:, :count]
        neighbours.append(near)
        cosines.append(np.take_along_axis(cosine, near, axis=1))

    return {
        "latent": np.repeat(ids, count).astype(np.int32),
        "rank": np.tile(np.arange(count), len(ids)).astype(np.int32),
        "neighbour": ids[np.concatenate(neighbours)].ravel().astype(np.int32),
        "cosine": np.concatenate(cosines).ravel().astype(np.float32),
    }
