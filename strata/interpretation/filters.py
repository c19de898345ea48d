"""Say which latents are worth a look: how they spread over documents, how often they fire, how much they write."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from strata.interpretation.knobs import Filters, Quadrant, Range

QUADRANTS: dict[tuple[bool, bool], Quadrant] = {  # (high entropy, high varentropy)
    (False, False): "flowing",
    (True, False): "careful",
    (False, True): "exploring",
    (True, True): "resampling",
}
REASONS = (
    "dead",
    *(f"{name}_{side}" for name in ("entropy", "firing", "importance", "again") for side in ("low", "high")),
    "quadrant",
)


def quadrants(entropy: NDArray[Any], varentropy: NDArray[Any], alive: NDArray[Any]) -> list[Quadrant | None]:
    """Name the quadrant of each latent; None for a dead one. High means above the median of the living latents."""
    if not alive.any():
        return [None] * len(alive)
    high = entropy > np.median(entropy[alive]), varentropy > np.median(varentropy[alive])
    pairs = zip(*(side.tolist() for side in high), strict=True)
    return [QUADRANTS[pair] if is_alive else None for pair, is_alive in zip(pairs, alive, strict=True)]


def dropped(
    entropy_share: NDArray[Any],
    firing: NDArray[Any],
    importance: NDArray[Any],
    again: NDArray[Any],
    quadrant: list[Quadrant | None],
    filters: Filters,
) -> list[str | None]:
    """Say why the filters drop each latent: the first of REASONS that holds; None for a latent that is kept.

    ``entropy_share``: the entropy over documents as a share of its maximum. If there is one document, it is NaN, and
    drops nothing. ``firing``: the share of the documents in which the latent fires.
    ``importance``: see `statistics.importance`. ``again``: the probability that the latent comes again with another
    seed; NaN, which drops nothing, where it is not known. All (latents,).
    """
    largest = max(float(importance.max(initial=0)), 1e-30)
    values = {"entropy": entropy_share, "firing": firing, "importance": importance / largest, "again": again}
    reasons: list[tuple[str, NDArray[Any]]] = [("dead", firing == 0)]
    for name, value in values.items():
        bound: Range = getattr(filters, name)
        reasons += [(f"{name}_low", value < bound.min)] if bound.min is not None else []
        reasons += [(f"{name}_high", value > bound.max)] if bound.max is not None else []
    if filters.quadrants is not None:
        reasons.append(("quadrant", np.array([q not in filters.quadrants for q in quadrant])))

    # From the last reason to the first, so that the first one stays.
    reason_of: list[str | None] = [None] * len(firing)
    for name, fails in reversed(reasons):
        for latent in np.flatnonzero(fails):
            reason_of[latent] = name
    return reason_of
