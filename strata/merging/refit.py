"""The decoder of a merged dictionary: the least squares one, drawn towards the merged decoder D₀.

‖X − 1b − ZMD‖² + λ‖D − D₀‖², with the bias b free: b = x̄ − z̄MD, and D from the normal equations of what is centred by
the means over all training rows. λ = ridge × the mean of their diagonal, so that ridge has no unit.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from strata.merging.groups import Groups
from strata.merging.moments import Moments, grouped_gram
from strata.run.door import BadInput

Floats = NDArray[np.float64]
SINGULAR = 1e-11  # the smallest pivot of the normal equations, over the largest, that the result can be trusted with


def start(moments: Moments, groups: Groups, decoder: Floats) -> Floats:
    """D₀, (group, width): of each group, the direction that on its own reconstructs best what its members write.

    Σ_j E[z′ z_j] d_j / E[z′²] over the members j, with z′ the group's code: least squares of Σ z_j d_j on z′. A group
    that is silent on the training rows has the mean of its members.
    """
    found = np.empty((groups.count, decoder.shape[1]))
    for group, members in enumerate(groups.members()):
        together = groups.shares[members] @ moments.gram[np.ix_(members, members)]
        power = float(together @ groups.shares[members])
        found[group] = (together / power) @ decoder[members] if power > 0 else decoder[members].mean(0)
    return found


def refit(moments: Moments, groups: Groups, decoder: Floats, ridge: float) -> tuple[Floats, Floats]:
    """D, (group, width), and b, (width,)."""
    n, count = moments.rows, groups.count
    first = start(moments, groups, decoder)
    gram = grouped_gram(moments.gram, groups.of, groups.shares, count)
    sums, cross = np.zeros(count), np.zeros((count, decoder.shape[1]))
    inside = groups.of >= 0
    np.add.at(sums, groups.of[inside], (groups.shares * moments.sums)[inside])
    np.add.at(cross, groups.of[inside], (groups.shares[:, None] * moments.cross)[inside])
    gram -= np.outer(sums, sums) / n
    cross -= np.outer(sums, moments.total) / n
    penalty = ridge * float(np.trace(gram)) / count
    gram[np.diag_indices(count)] += penalty
    cross += penalty * first
    found = _solved(gram, cross)
    return found, (moments.total - sums @ found) / n


def _solved(gram: Floats, cross: Floats) -> Floats:
    """gram⁻¹ cross, gram symmetric; scaled to a diagonal of 1 first, so that a rare code is not taken for none."""
    scale = np.sqrt(np.diag(gram))
    if not (scale > 0).all():
        raise _singular()
    try:
        factor, lower = cho_factor(gram / scale / scale[:, None], lower=True, overwrite_a=True, check_finite=False)
    except LinAlgError:
        raise _singular() from None
    if np.diag(factor).min() ** 2 < SINGULAR:
        raise _singular()
    found = cho_solve((factor, lower), cross / scale[:, None]) / scale[:, None]
    return np.ascontiguousarray(found)  # LAPACK's columns would make decoding eight times as slow


def _singular() -> BadInput:
    return BadInput(
        "params.yaml: merge.ridge is too small: the normal equations are singular, because a merged latent never fires "
        "on the training rows, or always as others do; set it above 0, e.g. 1.0e-2"
    )
