"""AdamW for encoder and decoder rows on the CPU, compiled by Numba: each row is read once, while it is in cache."""

import numpy as np
from numba import prange
from numpy.typing import NDArray

from strata.sae.engine.compiled import njit

Floats = tuple[NDArray[np.float32], NDArray[np.float32]]


@njit(parallel=True, nogil=True, cache=True, fastmath=True)
def projected(weights, gradient) -> Floats:  # pyright: ignore[reportReturnType]
    """The part of each row's gradient along its weights, of norm 1, and the square of the rest."""
    rows, width = weights.shape
    along, squares = np.empty(rows, np.float32), np.empty(rows, np.float32)
    for row in prange(rows):
        w, g, dot, square = weights[row], gradient[row], np.float32(0), np.float32(0)
        for j in range(width):
            dot += w[j] * g[j]
        for j in range(width):
            rest = g[j] - dot * w[j]
            square += rest * rest
        along[row], squares[row] = dot, square
    return along, squares


@njit(parallel=True, nogil=True, cache=True, fastmath=True)
def adamw(weights, gradient, means, squares, along, scale, knobs, lengths, unit):
    """One step of AdamW on ``scale`` × (gradient − along · weights), in place, of rows that are lengths · weights.

    ``unit``: what they have grown to goes to ``lengths``, and ``weights`` are of norm 1 again. Otherwise lengths are 1.

    ``knobs``: float32 learning rate / (1 − β₁ᵗ), 1 / √(1 − β₂ᵗ), 1 − learning rate × weight decay, 1 − β₁, 1 − β₂, ε.
    """
    rate, root, kept, fresh, fresh_square, epsilon = knobs
    for row in prange(len(weights)):
        w, g, m, v, dot, norm = weights[row], gradient[row], means[row], squares[row], along[row], np.float32(0)
        pace = rate / lengths[row]
        for j in range(len(w)):
            step = scale * (g[j] - dot * w[j])
            m[j] += fresh * (step - m[j])
            v[j] += fresh_square * (step * step - v[j])
            w[j] = kept * w[j] - pace * m[j] / (np.sqrt(v[j]) * root + epsilon)
            norm += w[j] * w[j]
        if unit:
            norm = max(np.sqrt(norm), np.float32(1e-12))
            lengths[row] *= norm
            for j in range(len(w)):
                w[j] *= np.float32(1) / norm
