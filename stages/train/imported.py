"""Open the SAE that `train.from` names. It is judged without being trained."""

import re
import sys
from typing import Any

import torch

from strata.measure import quality
from strata.rows import batches
from strata.rows.shards import Activations
from strata.run.door import BadInput
from strata.run.resume import places
from strata.sae import disk
from strata.sae.sae import SAE
from strata.training.autoencoder import Autoencoder, Scale, fold
from strata.training.fit import Fitted
from strata.training.knobs import From, Train
from strata.training.rules.topk import TopK

HERE = re.compile(r"blocks\.(\d+)\.hook_\w+")  # names of hooks that can be compared with ours


def take(
    given: From, rows: Activations, knobs: Train, seed: int, device: torch.device
) -> tuple[Fitted, Train, dict[str, Any]]:
    """Open the imported SAE, and return what a training would have left.

    Returns the result with this SAE and no history, knobs that describe the SAE, and the metadata of its `cfg.json`.
    """
    sae, config = load(given, rows)

    # One model has several names, so another name is no error.
    metadata, ours = config.get("metadata") or {}, rows.meta["model"]["name"]
    if (theirs := metadata.get("model_name")) not in (None, ours):
        sys.stderr.write(f"train: {given.folder} is said to be for {theirs}; it is judged on activations of {ours}\n")

    sae = sae.to(device)
    l0 = active_latents(sae, rows)
    knobs = described(sae, config, l0, knobs)
    return Fitted(untrained(sae, rows, knobs, seed), {"best": sae}, best_l0=l0), knobs, metadata


def load(given: From, rows: Activations) -> tuple[SAE, dict[str, Any]]:
    """Read the SAE and its configuration.

    Raises BadInput where its bytes are not those that were pinned, or where its width or hook is not that of ``rows``.
    """
    folder = next((place for place in places(given.folder) if (place / disk.CONFIG).is_file()), None)
    if folder is None:
        raise BadInput(
            f"params.yaml: train.from names {given.folder}, which holds no {disk.CONFIG}; "
            f"`python -m src.convert SOURCE {given.folder}` makes an SAE's folder"
        )
    if (actual_hash := disk.fingerprint(folder)) != given.sha256:
        raise BadInput(f"params.yaml: train.from.sha256 must be that of {given.folder}, which is {actual_hash}")

    sae, config = disk.load(folder)
    if sae.groups is not None:
        raise BadInput(
            f"{given.folder} has latents that are sums of parts, which merge could not merge again; make it "
            "with merge.encoder: mean"
        )
    if sae.width != rows.width:
        raise BadInput(f"{given.folder} is for width {sae.width}, but layer {rows.layer} has width {rows.width}")

    theirs, ours = (config.get("metadata") or {}).get("hook_name"), rows.hook_name
    if isinstance(theirs, str) and HERE.fullmatch(theirs) and _point(theirs) != _point(ours):
        raise BadInput(
            f"{given.folder} is for {theirs}, but layer {rows.layer} has {ours}; give it its own layer's SAE"
        )
    return sae, config


def _point(hook: str) -> str:
    """Return one name for each place in the model: what a block reads is what the block before it wrote."""
    before = re.fullmatch(r"blocks\.([1-9]\d*)\.hook_resid_pre", hook)
    return f"blocks.{int(before.group(1)) - 1}.hook_resid_post" if before else hook


@torch.inference_mode()
def active_latents(sae: SAE, rows: Activations) -> float:
    """Return the mean number of latents that are active on a validation row."""
    first, end = rows.split("validation")
    if first == end:
        raise BadInput("there are no validation rows to count active latents on; raise fetch.corpus.validation")
    blocks = batches.blocks(rows, first, end, sae.decoder.device)
    return quality.reconstruction(sae.reconstruct, blocks, rows.scale, rows.median_norm)["l0"]


def described(sae: SAE, config: dict[str, Any], l0: float, knobs: Train) -> Train:
    """Return ``knobs`` that describe the SAE: its rule, its latents, and as k its ``l0``."""
    rule = (config.get("metadata") or {}).get("training_architecture") or config["architecture"]
    return knobs.model_copy(update={"rule": str(rule), "latents": sae.latents, "k": max(1, round(l0))})


def untrained(sae: SAE, rows: Activations, knobs: Train, seed: int) -> SAE:
    """Return the SAE that a training with ``knobs`` would begin with, with top-k."""
    device = sae.decoder.device
    random = torch.Generator().manual_seed(seed)
    model = Autoencoder(rows.width, knobs.latents, random, knobs.init, sae.decoder_activation).to(device)
    return fold(model, TopK(knobs.k), Scale.of(rows, device))
