"""Steer with latents of twins, which are SAEs of equal budget with a part that stayed random (stage controls).

Any direction makes the tokens likelier that its own logit lens puts first. So a twin's latent is steered towards what
it promotes itself, and its effect at equal cost is what the latents of the SAE have to beat.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from strata.interpretation.logit_lens import lens
from strata.measure.partners import Firing
from strata.steering.conditions import LATENT, Condition, Place
from strata.steering.doses import Response, TargetTokens, responses
from strata.steering.knobs import SteerEval
from strata.steering.summary import INTERVAL, best, means
from strata.steering.texts import Texts


def steered(
    place: Place, fires: Firing, latents: list[int], top: int, prompts: Texts, knobs: SteerEval, work: Path | None
) -> dict[int, Response]:
    """Steer with ``latents`` of the twin at ``place``, each towards the ``top`` tokens that it promotes.

    Returns latent -> response. None are there where the model's last steps are not understood, so that nothing is known
    to be promoted.
    """
    found = lens(place.sae.decoder[latents], place.lm, top) if latents else None
    if found is None:
        return {}

    nothing = torch.zeros(0, dtype=torch.long)
    pairs = []
    for latent, promoted in zip(latents, found.promoted, strict=True):
        largest = float(fires.largest[latent])
        offset = place.sae.decoder[latent].float().cpu() * largest
        condition = Condition(LATENT, offset, latent, largest)
        pairs.append((condition, TargetTokens(torch.from_numpy(promoted.astype(np.int64)), nothing)))
    measured = responses(place, prompts, pairs, knobs.strengths, knobs.batch_size, work=work)
    return dict(zip(latents, measured, strict=True))


def beside(
    own: dict[int, Response],
    partner_of: dict[int, int],
    twin: dict[int, Response],
    knobs: SteerEval,
    draws: NDArray[np.int64],
    random: np.random.Generator,
) -> dict[str, Any]:
    """Compare the best effects of the SAE's latents, and of their partners, at no more than ``knobs.kl``.

    ``own``, ``twin``: latent -> its response. ``draws``: (draw, prompt), for an interval over prompts and latents.
    Returns the mean effect of both, and their difference.
    """

    def effects(response: Response) -> NDArray[np.float64]:
        """(1 + draw,): on all prompts, then on those of each draw."""
        return best(knobs.strengths, means(response.promoted, draws), means(response.kl, draws), knobs.kl).effect

    pairs = [(j, other) for j, other in partner_of.items() if other in twin]
    if not pairs:
        return {"latents": 0}

    mine = np.stack([effects(own[j]) for j, _ in pairs])  # (pair, 1 + draw)
    theirs = np.stack([effects(twin[other]) for _, other in pairs])
    gained = mine - theirs
    again = random.integers(len(pairs), size=(len(draws), len(pairs)))  # latents drawn again, in each draw of prompts
    low, high = np.percentile(gained[again, np.arange(1, len(draws) + 1)[:, None]].mean(1), INTERVAL)
    return {
        "latents": len(pairs),
        "partners": [[j, other] for j, other in pairs],
        "own": float(mine[:, 0].mean()),
        "effect": float(theirs[:, 0].mean()),
        "difference": float(gained[:, 0].mean()),
        "low": float(low),
        "high": float(high),
    }
