"""AdamW for encoder and decoder rows on the CPU, compiled by Numba. Each row is read once, while it is in cache.

These loops do what `update.py` describes; torch's own functions would go through memory once for each operation.
"""

import numpy as np
from numba import prange
from numpy.typing import NDArray

from strata.sae.engine.compiled import njit

Floats = tuple[NDArray[np.float32], NDArray[np.float32]]


@njit(parallel=True, nogil=True, cache=True, fastmath=True)
def projected(
    weights,  # (rows, width) float32, decoder rows of norm 1
    gradient,  # (rows, width) float32, their gradient
) -> Floats:  # pyright: ignore[reportReturnType]
    """Split each row's gradient into the part along its weights and the rest.

    Returns the dot product of gradient and weights, (rows,), and the squared norm of the rest, (rows,).
    """
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
def adamw(
    weights,  # (rows, width) float32, changed in place
    gradient,  # (rows, width) float32
    means,  # (rows, width) float32, Adam's first moments, changed in place
    squares,  # (rows, width) float32, Adam's second moments, changed in place
    along,  # (rows,) float32, the gradient's part along each row, which is taken out; 0 leaves it in
    scale,  # float32, what clipping multiplies all gradients by
    knobs,  # six float32: rate, root, kept, fresh, fresh_square, epsilon, see below
    lengths,  # (rows,) float32, a row stands for lengths · weights; 1 unless ``unit``; changed in place if ``unit``
    unit,  # bool: bring the rows back to norm 1, and multiply their lengths by the norm that they had
):
    """Take one step of AdamW, in place, with the gradient ``scale`` × (gradient − along · weights).

    ``knobs``, at step t: rate = learning rate / (1 − β₁ᵗ), root = 1 / √(1 − β₂ᵗ), kept = 1 − learning rate × weight
    decay, fresh = 1 − β₁, fresh_square = 1 − β₂, epsilon = ε.
    """
    rate, root, kept, fresh, fresh_square, epsilon = knobs
    for row in prange(len(weights)):
        w, g, m, v, dot, norm = weights[row], gradient[row], means[row], squares[row], along[row], np.float32(0)
        pace = rate / lengths[row]  # a step of the long row turns the row of norm 1 by so much less
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
