"""Which latents are worth a look: bounds on how they spread over documents, how often and how strongly they fire."""

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
    *(f"{name}_{side}" for name in ("entropy", "firing", "importance") for side in ("low", "high")),
    "quadrant",
)


def quadrants(entropy: NDArray[Any], varentropy: NDArray[Any], alive: NDArray[Any]) -> list[Quadrant | None]:
    """Low or high, against the layer's medians over living latents; None for a dead one."""
    if not alive.any():
        return [None] * len(alive)
    high = entropy > np.median(entropy[alive]), varentropy > np.median(varentropy[alive])
    pairs = zip(*(side.tolist() for side in high), strict=True)
    return [QUADRANTS[pair] if there else None for pair, there in zip(pairs, alive, strict=True)]


def dropped(
    entropy_share: NDArray[Any],
    firing: NDArray[Any],
    importance: NDArray[Any],
    quadrant: list[Quadrant | None],
    filters: Filters,
) -> list[str | None]:
    """The first of REASONS for which each latent is dropped.

    Where there is one document, entropy has no share (NaN) and drops nothing.
    """
    largest = max(float(importance.max(initial=0)), 1e-30)
    values = {"entropy": entropy_share, "firing": firing, "importance": importance / largest}
    reasons: list[tuple[str, NDArray[Any]]] = [("dead", firing == 0)]
    for name, value in values.items():
        bound: Range = getattr(filters, name)
        reasons += [(f"{name}_low", value < bound.min)] if bound.min is not None else []
        reasons += [(f"{name}_high", value > bound.max)] if bound.max is not None else []
    if filters.quadrants is not None:
        reasons.append(("quadrant", np.array([q not in filters.quadrants for q in quadrant])))
    found: list[str | None] = [None] * len(firing)
    for name, fails in reversed(reasons):
        for latent in np.flatnonzero(fails):
            found[latent] = name
    return found
