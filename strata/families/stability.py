"""Whether the families would be there again: on other documents, from another seed. Beside it, what chance gives."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strata.families.knobs import Stability

Floats = NDArray[Any]
Labels = NDArray[np.int64]


def agreement(a: Labels, b: Labels) -> float:
    """Adjusted Rand index: 1 for the same partition, 0 in the mean for partitions at random. Each noise latent is a
    cluster of its own, so that two clusterings that call all noise agree about that only."""
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(_alone(a), _alone(b)))


def _alone(labels: Labels) -> Labels:
    noise = labels < 0
    found = labels.copy()
    found[noise] = labels.max(initial=-1) + 1 + np.arange(noise.sum())
    return found


def stability(
    labels: Labels,
    resampled: Callable[[Floats], Labels],
    reseeded: Sequence[Labels],
    documents: int,
    knobs: Stability,
    seed: int,
) -> dict[str, Any]:
    """Agreement of ``labels`` with clusterings of ``documents`` drawn with replacement, given as how often each was
    drawn; with those of other seeds, ``reseeded`` (none where the method has no chance in it); and with itself
    shuffled. Each as the mean, least and most adjusted Rand index, or None."""
    rng = np.random.default_rng([seed, 1])
    draws = (rng.multinomial(documents, np.full(documents, 1 / documents)) for _ in range(knobs.bootstraps))
    bootstrap = _spread(agreement(labels, resampled(times.astype(np.float64))) for times in draws)
    reseed = _spread(agreement(labels, other) for other in reseeded)
    chance = _spread(agreement(labels, rng.permutation(labels)) for _ in range(knobs.shuffles))
    return {"bootstrap": bootstrap, "reseed": reseed, "chance": chance}


def _spread(values: Iterable[float]) -> dict[str, float] | None:
    found = list(values)
    return {"ari": float(np.mean(found)), "least": min(found), "most": max(found)} if found else None
