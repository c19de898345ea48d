"""How much of the true features an SAE recovers, as `sae_lens.synthetic` 6.54 measures it.

A latent stands for the feature with which its decoder row has the largest |cosine|. It is judged as a detector of that
feature: F1 of "the latent is active" against "the feature is active". Several latents may stand for one feature, which
uniqueness counts; MCC matches latents and features one to one.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from strata.measure.quality import Errors, compared
from strata.sae.sae import SAE
from strata.synthetic.rows import Labelled

SHORTEST = 1e-8  # a direction is divided by its norm, or by this where it is shorter

Coder = Callable[[Tensor], tuple[Tensor, Tensor]]  # rows (row, width) -> codes (row, latent), x̂ (row, width)


@dataclass(frozen=True)
class Scores:
    """What an SAE recovers. All but ``l0`` and ``true_l0`` are shares.

    ``f1``, ``precision`` and ``recall``: means over latents; a latent that never fires, or whose feature never does,
    counts 0. ``mcc``: the mean |cosine| of the matched pairs, of which there are as many as latents, or as features if
    these are fewer. ``uniqueness``: different features that latents stand for, over latents. ``dead``: latents that
    fire on no row. ``fvu``: Σ‖x - x̂‖² / Σ‖x - mean‖².

    ``l0``: active latents a row. ``true_l0``: active features a row. ``reachable_l0``: the same of the n features that
    are active most often, for n latents, since no dictionary of n latents can have more. ``l0_error``: l0 /
    reachable_l0 - 1.
    """

    f1: float
    precision: float
    recall: float
    mcc: float
    uniqueness: float
    dead: float
    fvu: float | None
    l0: float
    true_l0: float
    reachable_l0: float
    l0_error: float


def cosines(decoder: Tensor, directions: Tensor) -> Tensor:
    """Return |cosine| of each row of ``decoder`` (latent, width) with each direction, (latent, feature)."""
    unit, true = (t / t.norm(dim=1, keepdim=True).clamp(min=SHORTEST) for t in (decoder, directions))
    return (unit @ true.T).abs()


def mcc(similarity: Tensor) -> float:
    """Return the mean ``similarity`` (latent, feature) of the pairs of the best one-to-one matching (Hungarian)."""
    latents, features = linear_sum_assignment(similarity.double().numpy(), maximize=True)
    return float(similarity[latents, features].mean())


def uniqueness(similarity: Tensor) -> float:
    """Return how many features are some latent's most similar one, over latents. ``similarity``: (latent, feature)."""
    return len(similarity.argmax(1).unique()) / len(similarity)


@torch.inference_mode()
def scores(decoder: Tensor, coder: Coder, directions: Tensor, blocks: Iterable[Labelled]) -> Scores:
    """Score a dictionary on rows with known activations.

    ``decoder``: (latent, width). ``coder``: see :data:`Coder`; a code other than 0 is active. ``directions``: (feature,
    width). ``blocks``: the rows, each once.
    """
    similarity = cosines(decoder, directions)
    best = similarity.argmax(1)  # (latent,) the feature that each latent stands for
    latents, features = similarity.shape

    # (latent,) rows on which both fire, on which the latent fires, and on which its feature does.
    both, fired = torch.zeros(latents, dtype=torch.int64), torch.zeros(latents, dtype=torch.int64)
    true = torch.zeros(features, dtype=torch.int64)
    errors = Errors()
    for x, activations in blocks:
        codes, reconstruction = coder(x)
        active, there = codes != 0, activations.dense() > 0
        both += (active & there[:, best]).sum(0)
        fired += active.sum(0)
        true += there.sum(0)
        errors.add(compared(x, reconstruction, active.sum(1)))

    precision = _ratio(both, fired)
    recall = _ratio(both, true[best])
    l0, true_l0 = (float(count.sum()) / errors.rows for count in (fired, true))
    reachable_l0 = float(true.sort(descending=True).values[:latents].sum()) / errors.rows
    return Scores(
        f1=float(_ratio(2 * both, fired + true[best]).mean()),
        precision=float(precision.mean()),
        recall=float(recall.mean()),
        mcc=mcc(similarity),
        uniqueness=uniqueness(similarity),
        dead=float((fired == 0).double().mean()),
        fvu=errors.fvu(),
        l0=l0,
        true_l0=true_l0,
        reachable_l0=reachable_l0,
        l0_error=l0 / reachable_l0 - 1 if reachable_l0 else float("nan"),
    )


def _ratio(count: Tensor, total: Tensor) -> Tensor:
    """Return ``count`` / ``total`` in float64, and 0 where ``total`` is 0."""
    return torch.where(total > 0, count.double() / total.clamp(min=1), 0.0)


def of_sae(sae: SAE, directions: Tensor, blocks: Iterable[Labelled]) -> Scores:
    """Score an SAE; see :func:`scores`."""

    def coder(x: Tensor) -> tuple[Tensor, Tensor]:
        codes = sae.encode(x)
        return codes.dense(), sae.decode(codes)

    return scores(sae.decoder, coder, directions, blocks)
