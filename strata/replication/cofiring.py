"""Compare latents by where they fire: the correlation of their codes over the same held-out rows.

ρ_ij = (E[z_i z′_j] − E[z_i] E[z′_j]) / (σ_i σ′_j)

Two latents may write in different directions and still fire on the same tokens, or write alike and fire elsewhere. The
control moves the codes of every latent down by a random number of rows, the last ones to the top. So each latent keeps
how often, how strongly and in what bursts it fires, but not where.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csc_array, vstack
from torch import Tensor

from strata.replication.knobs import BLOCK
from strata.replication.match import Similar, similar
from strata.sae.sae import SAE


@torch.inference_mode()
def codes(sae: SAE, blocks: Iterable[Tensor]) -> csc_array:
    """Encode ``blocks`` of rows (row, width): the codes of ``sae``, (row, latent), float64, sparse."""
    parts = []
    for x in blocks:
        block = sae.encode(x.float())
        values, latents, row_of = block.values.double(), block.pattern.latents, block.pattern.row_of
        entries = (values.cpu().numpy(), (row_of.cpu().numpy(), latents.cpu().numpy()))
        parts.append(csc_array(entries, shape=(len(x), sae.latents)))
    return csc_array(vstack(parts, format="csc"))


def size(z: csc_array) -> tuple[int, int]:
    """Return the number of rows, and that of latents."""
    shape = z.shape
    assert shape is not None
    return shape


def fired(z: csc_array) -> NDArray[np.int64]:
    """Count the rows on which each latent fires, (latent,). ``z``: (row, latent)."""
    return np.diff(z.indptr)


def by_correlation(first: csc_array, second: csc_array, least: float) -> Similar:
    """Compare the codes of two dictionaries on the same rows, (row, latent) each, by their correlation.

    A latent whose code does not vary has a correlation of 0 with all others.
    """
    rows, _ = size(first)
    (mean, deviation), (other_mean, other_deviation) = _moments(first), _moments(second)

    def blocks() -> Iterator[NDArray[np.float64]]:
        for start in range(0, len(mean), BLOCK):
            block = slice(start, start + BLOCK)
            product = (first[:, block].T @ second).toarray() / rows  # (latent of the block, latent) E[z z′]
            product -= np.outer(mean[block], other_mean)
            product /= np.outer(deviation[block], other_deviation)
            yield product

    return similar(blocks(), (len(mean), len(other_mean)), least)


def _moments(z: csc_array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean and the standard deviation of each latent's code; infinity where it does not vary."""
    rows, _ = size(z)
    mean = z.sum(0) / rows
    variance = z.multiply(z).sum(0) / rows - mean**2
    return mean, np.where(variance > 1e-12 * mean**2, np.sqrt(np.maximum(variance, 0)), np.inf)


def moved(z: csc_array, random: np.random.Generator) -> csc_array:
    """Move each latent's codes down by its own random number of rows, from 1 on; the last rows come to the top."""
    rows, latents = size(z)
    shift = random.integers(1, max(rows, 2), latents)
    row = (z.indices + np.repeat(shift, np.diff(z.indptr))) % rows
    shifted = csc_array((z.data.copy(), row, z.indptr), shape=z.shape)  # the sort moves the data, too
    shifted.sort_indices()
    return shifted
