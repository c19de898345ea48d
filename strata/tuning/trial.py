"""One trial: a short training, and its score on held-out rows."""

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
from strata.sae.knobs import Train
from strata.sae.sae import SAE
from strata.sae.training import training
from strata.tuning.knobs import Tune
from strata.verdict.targets import Targets, penalty

CURVE = ("step", "tokens", "lr", "loss", "mse", "fvu", "l0", "dead")
SETTLED = {"ce_tokens": 0, "keep_every": None, "validation_rows": 1024}  # of every trial: they change no result


def sliced(activations: Activations, rows: int | None) -> Activations:
    """The same with the first ``rows`` training rows alone; None: all of them."""
    splits = activations.meta["splits"]
    first, end = splits["train"]
    end = end if rows is None else min(end, first + rows)
    return replace(activations, meta={**activations.meta, "splits": {**splits, "train": [first, end]}})


def trial_knobs(train: dict[str, Any], values: dict[str, Any], tune: Tune) -> Train:
    """The section ``train`` with a trial's ``values``; raises BadInput where they do not go together."""
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
    """Train with ``values`` on the slice ``activations`` and judge: the score, what it consists of, the curve.

    What fails (knobs that do not go together, divergence, an error that is no number) has a ``reason`` and no score.
    """
    nothing = {"score": None, **dict.fromkeys(("fvu", "fvu_inlier", "l0", "dead")), "curve": []}
    try:
        knobs = trial_knobs(train, values, tune)
        fitted, _ = training.train(activations, knobs, targets, seed, device=device)
    except BadInput as refusal:
        return {**nothing, "reason": str(refusal)}
    found = judge(fitted.saes["final"], activations, targets)
    curve = [{name: row[name] for name in CURVE} for row in fitted.history]
    if found["score"] is None:
        return {**nothing, "curve": curve, "reason": "there is no variance to explain in the validation rows"}
    return {**found, "curve": curve, "reason": None}


@torch.inference_mode()
def judge(sae: SAE, activations: Activations, targets: Targets) -> dict[str, float | None]:
    """score = fvu + penalty(l0, dead), smallest is best (see strata/verdict/targets.py): fvu and l0 of the validation
    rows, dead over these and the training rows of the slice."""

    def blocks(split: str) -> Iterator[Tensor]:
        return batches.blocks(activations, *activations.split(split), sae.decoder.device)

    found = quality.reconstruction(sae.reconstruct, blocks("validation"), activations.scale, activations.median_norm)
    dead = len(silent(sae, chain(blocks("validation"), blocks("train")))) / sae.latents
    fvu = found["fvu"]
    score = None if fvu is None else fvu + penalty(found["l0"], dead, targets)
    return {"score": score, "fvu": fvu, "fvu_inlier": found["fvu_inlier"], "l0": found["l0"], "dead": dead}


def silent(sae: SAE, blocks: Iterable[Tensor]) -> Tensor:
    """An index of the latents that are active on no row.

    Under thresholds no latent depends on another, so that each block is asked of those alone that were silent before:
    after the first blocks that is hardly any work. Top-k needs them all.
    """
    left = torch.arange(sae.latents, device=sae.decoder.device)
    part = sae
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
