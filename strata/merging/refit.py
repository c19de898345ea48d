"""Refit the decoder of a merged dictionary: by least squares, drawn towards the merged decoder D₀.

It minimises ‖X − 1b − ZMD‖² + λ‖D − D₀‖². The bias b is free, so that b = x̄ − z̄MD, and D solves the normal equations
of codes and rows from which their means over all training rows are subtracted. λ = ridge × the mean of the diagonal of
these equations, so that ridge has no unit.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from strata.merging.groups import Groups
from strata.merging.moments import Moments, grouped_gram
from strata.run.door import BadInput

Floats = NDArray[np.float64]
SINGULAR = 1e-11  # the least ratio of the smallest pivot to the largest one at which the result can be trusted


def start(moments: Moments, groups: Groups, decoder: Floats) -> Floats:
    """Compute D₀, (group, width): the direction that by itself reconstructs best what the members of a group write.

    With z′ the group's code it is Σ_j E[z′ z_j] d_j / E[z′²] over the members j, the least squares fit of Σ z_j d_j on
    z′. A group that is silent on the training rows has the mean of its members. ``decoder``: (latent, width).
    """
    directions = np.empty((groups.count, decoder.shape[1]))
    for group, members in enumerate(groups.members()):
        together = groups.shares[members] @ moments.gram[np.ix_(members, members)]  # (member,) Σ z′ z_j
        power = float(together @ groups.shares[members])  # Σ z′²
        directions[group] = (together / power) @ decoder[members] if power > 0 else decoder[members].mean(0)
    return directions


def refit(moments: Moments, groups: Groups, decoder: Floats, ridge: float) -> tuple[Floats, Floats]:
    """Compute the decoder D, (group, width), and the bias b, (width,).

    ``decoder``: (latent, width), of the SAE that is merged. Raises BadInput where ``ridge`` is too small to solve it.
    """
    n, count = moments.rows, groups.count
    merged_decoder = start(moments, groups, decoder)

    # The sums over the groups' codes: Mᵀ zᵀz M, Mᵀ Σz, Mᵀ zᵀX.
    gram = grouped_gram(moments.gram, groups.of, groups.shares, count)
    sums, cross = np.zeros(count), np.zeros((count, decoder.shape[1]))
    inside = groups.of >= 0
    np.add.at(sums, groups.of[inside], (groups.shares * moments.sums)[inside])
    np.add.at(cross, groups.of[inside], (groups.shares[:, None] * moments.cross)[inside])

    # Subtract the means, then draw towards D₀.
    gram -= np.outer(sums, sums) / n
    cross -= np.outer(sums, moments.total) / n
    penalty = ridge * float(np.trace(gram)) / count
    gram[np.diag_indices(count)] += penalty
    cross += penalty * merged_decoder

    refitted = _solved(gram, cross)
    return refitted, (moments.total - sums @ refitted) / n


def _solved(gram: Floats, cross: Floats) -> Floats:
    """Compute gram⁻¹ cross for a symmetric ``gram`` (group, group) and ``cross`` (group, width).

    The equations are scaled to a diagonal of 1 first; otherwise those of a rare code would look singular.
    """
    scale = np.sqrt(np.diag(gram))
    if not (scale > 0).all():
        raise _singular()
    try:
        factor, lower = cho_factor(gram / scale / scale[:, None], lower=True, overwrite_a=True, check_finite=False)
    except LinAlgError:
        raise _singular() from None
    if np.diag(factor).min() ** 2 < SINGULAR:
        raise _singular()

    solution = cho_solve((factor, lower), cross / scale[:, None]) / scale[:, None]
    return np.ascontiguousarray(solution)  # in LAPACK's order of columns, decoding would be eight times as slow


def _singular() -> BadInput:
    """Make the error that says what to change."""
    return BadInput(
        "params.yaml: merge.ridge is too small: the normal equations are singular, because a merged latent never fires "
        "on the training rows, or always as others do; set it above 0, e.g. 1.0e-2"
    )
