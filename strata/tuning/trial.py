"""Make one trial: a short training, and its score on held-out rows."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from strata.device.machine import CPU
from strata.measure import quality
from strata.rows import batches
from strata.rows.shards import Activations
from strata.run.door import BadInput
from strata.run.params import check
from strata.sae.sae import SAE
from strata.training import training
from strata.training.knobs import Train
from strata.tuning.knobs import Tune
from strata.verdict.targets import Targets, penalty

CURVE = ("step", "tokens", "lr", "loss", "mse", "fvu", "l0", "dead")

# In every trial. They change which checkpoint is the best one, and the cross-entropy: a trial uses neither.
SETTLED = {"ce_tokens": 0, "keep_every": None, "validation_rows": 1024}


def sliced(activations: Activations, rows: int | None) -> Activations:
    """Limit ``activations`` to the first ``rows`` training rows; None: keep all of them."""
    splits = activations.meta["splits"]
    first, end = splits["train"]
    if rows is not None:
        end = min(end, first + rows)
    return replace(activations, meta={**activations.meta, "splits": {**splits, "train": [first, end]}})


def trial_knobs(train: dict[str, Any], values: dict[str, Any], tune: Tune) -> Train:
    """Put a trial's ``values`` into the section ``train``. Raises BadInput if they do not go together."""
    return check({**train, **values, "epochs": tune.epochs, **SETTLED}, Train, "train")


def attempt(
    activations: Activations,
    train: dict[str, Any],
    values: dict[str, Any],
    tune: Tune,
    targets: Targets,
    seed: int,
    device: torch.device = CPU,
) -> dict[str, Any]:
    """Train with ``values`` on the slice ``activations``, and judge the SAE.

    ``train``: the section of params.yaml that ``values`` change. Returns the score, its parts, the training curve, and
    the ``reason`` of a failure (knobs that do not go together, divergence, a score that is no finite number), or None.
    A trial that failed has no score.
    """
    failed = {"score": None, **dict.fromkeys(("fvu", "fvu_inlier", "l0", "dead")), "curve": []}
    try:
        knobs = trial_knobs(train, values, tune)
        fitted = training.train(activations, knobs, targets, seed, device=device)
    except BadInput as refusal:
        return {**failed, "reason": str(refusal)}

    judgement = judge(fitted.saes["final"], activations, targets)
    curve = [{name: row[name] for name in CURVE} for row in fitted.history]
    if judgement["score"] is None:
        return {**failed, "curve": curve, "reason": "there is no variance to explain in the validation rows"}
    if not math.isfinite(judgement["score"]):
        return {**failed, "reason": f"training diverged: the error on the validation rows is {judgement['fvu']}"}
    return {**judgement, "curve": curve, "reason": None}


@torch.inference_mode()
def judge(sae: SAE, activations: Activations, targets: Targets) -> dict[str, float | None]:
    """Score an SAE: score = fvu + penalty(l0, dead), and the smallest is best (see `strata/verdict/targets.py`).

    fvu and l0 are measured on the validation rows; dead is the share of latents that fire neither there nor on the
    training rows of the slice. Score and fvu are None if the validation rows have no variance.
    """

    def blocks(split: str) -> Iterator[Tensor]:
        return batches.blocks(activations, *activations.split(split), sae.decoder.device)

    measures = quality.reconstruction(sae.reconstruct, blocks("validation"), activations.scale, activations.median_norm)
    dead = len(silent(sae, chain(blocks("validation"), blocks("train")))) / sae.latents

    fvu = measures["fvu"]
    score = None if fvu is None else fvu + penalty(measures["l0"], dead, targets)
    return {"score": score, "fvu": fvu, "fvu_inlier": measures["fvu_inlier"], "l0": measures["l0"], "dead": dead}


def silent(sae: SAE, blocks: Iterable[Tensor]) -> Tensor:
    """Return the indices of the latents that fire on no row of ``blocks``, (silent latent,) in rising order.

    With thresholds no latent depends on another. So each block is encoded only by the latents that were silent before:
    after the first blocks that is hardly any work. Top-k needs all latents, because they compete.
    """
    left = torch.arange(sae.latents, device=sae.decoder.device)
    part = sae  # the latents ``left`` of it, or all of them with top-k
    for block in blocks:
        fired = part.encode(block.float()).pattern.latents.unique()
        if sae.threshold is None:
            left = left[~torch.isin(left, fired)]
            continue

        stays = torch.ones(len(left), dtype=torch.bool, device=left.device)
        stays[fired] = False
        left = left[stays]
        if not len(left):
            break

        kept = {name: tensor[left] for name, tensor in sae.tensors().items() if name not in ("b_dec", "mean")}
        part = replace(sae, **kept)
    return left
