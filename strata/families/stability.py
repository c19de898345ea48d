"""Measure whether the families come again on other documents and from other seeds, and what chance would give."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strata.families.knobs import Stability
from strata.run.progress import each

Floats = NDArray[Any]
Labels = NDArray[np.int64]


def agreement(a: Labels, b: Labels) -> float:
    """Compute the adjusted Rand index of two clusterings of the same latents, (n,) each.

    It is 1 for the same partition, and 0 in the mean for random partitions. Each noise latent counts as a cluster of
    its own; otherwise noise would be one large cluster on which two clusterings agree.
    """
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(_alone(a), _alone(b)))


def _alone(labels: Labels) -> Labels:
    """Give each noise latent a label of its own."""
    noise = labels < 0
    alone = labels.copy()
    alone[noise] = labels.max(initial=-1) + 1 + np.arange(noise.sum())
    return alone


def stability(
    labels: Labels,
    resampled: Callable[[Floats], Labels],
    reseeded: Sequence[Labels],
    documents: int,
    knobs: Stability,
    seed: int,
) -> dict[str, Any]:
    """Compare ``labels`` (n,) with other clusterings: mean, least and most adjusted Rand index of each kind, or None.

    bootstrap: of ``documents`` drawn with replacement. ``resampled`` makes such a clustering from (documents,), which
    says how often each document was drawn.
    reseed: from other seeds, ``reseeded``, which is empty where the method does not depend on a seed.
    chance: ``labels`` themselves, shuffled.
    """
    rng = np.random.default_rng([seed, 1])
    draws = (rng.multinomial(documents, np.full(documents, 1 / documents)) for _ in range(knobs.bootstraps))
    shown = each(draws, "cluster again", "draws", knobs.bootstraps)
    bootstrap = _spread(agreement(labels, resampled(times.astype(np.float64))) for times in shown)
    reseed = _spread(agreement(labels, labels_again) for labels_again in reseeded)
    chance = _spread(agreement(labels, rng.permutation(labels)) for _ in range(knobs.shuffles))
    return {"bootstrap": bootstrap, "reseed": reseed, "chance": chance}


def _spread(values: Iterable[float]) -> dict[str, float] | None:
    """Summarise adjusted Rand indices; None if there are none."""
    indices = list(values)
    return {"ari": float(np.mean(indices)), "least": min(indices), "most": max(indices)} if indices else None
