"""How interesting a latent is to a person, from 0 to 1: the order in which people meet latents.

interest = told · rare · varied · seen, and 0 for a latent that is dead or that the filters dropped

- told:   2 (balanced accuracy of its best rule or label - the larger of its chance and 0.5): 1 where a rule tells
          perfectly, on unseen text, where it fires.
- rare:   1 where it fires on ½ % of the rows or fewer, 0 from 10 % up; between them it falls with ln density.
- varied: 1 - share · (1 + common) / 2, with the share of its firing that is its first token's. ``common`` is 0 for a
          token on one row in 100,000 or fewer and 1 from one in a hundred up, and rises with ln of how often it stands.
          So a latent of "the" alone has 0, one of a single rare word 0.5, one of many words more.
- seen:   n / (n + 4) of the n documents in which it fires.

*Importance*, how much a latent writes, orders latents for work on the model. Those are the dense ones, of "the" and
",", which say little to a reader.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strata.interpretation.explanations import Explanation

RARE, DENSE = 0.005, 0.1  # densities from which on `rare` is 1, and 0
UNCOMMON, COMMON = 1e-5, 1e-2  # how often a token stands, from which on `common` is 0, and 1
FEW = 4  # documents in which a latent is half as interesting as in all
SCORE = "balanced_accuracy"

Floats = NDArray[np.float64]


def interest(
    statistics: dict[str, Any], found: Sequence[Explanation], latent: NDArray[Any], share: Floats, background: Floats
) -> Floats:
    """Compute the interest of each latent, (latents,).

    ``statistics``: columns (latents,). ``found``: their rules and labels, with scores. ``latent``, ``share``,
    ``background``: (entries,) the first token of those latents that have one: its share of the rows on which the latent
    fires, and of all rows.
    """
    density = np.maximum(np.asarray(statistics["density"], float), 1e-12)
    rare = np.clip(np.log(DENSE / density) / np.log(DENSE / RARE), 0, 1)

    # Of latents whose first token is not known, such as dead ones, nothing is taken off.
    common = np.clip(np.log(np.maximum(background, 1e-12) / UNCOMMON) / np.log(COMMON / UNCOMMON), 0, 1)
    varied = np.ones(len(density))
    varied[latent] = 1 - share * (1 + common) / 2

    documents = np.asarray(statistics["documents"], float)
    seen = documents / (documents + FEW)
    return told(found, len(density)) * rare * varied * seen * np.asarray(statistics["kept"], bool)


def told(found: Sequence[Explanation], latents: int) -> Floats:
    """Say how far the best of each latent's explanations is above chance, (latents,) from 0 to 1."""
    best = np.zeros(latents)
    for explanation in found:
        value, chance = explanation.scores[SCORE], explanation.scores[f"{SCORE}_chance"]
        if value is not None:
            above = 2 * (value - max(chance or 0.0, 0.5))
            best[explanation.latent] = max(best[explanation.latent], min(above, 1.0))
    return best
