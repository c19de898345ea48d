"""Take an SAE that somebody else trained, to judge it instead of training one: `train.from`."""

import re
import sys
from pathlib import Path
from typing import Any

import torch

from stages.train.judge import hook_name
from strata.measure import quality
from strata.rows import batches
from strata.rows.shards import Activations
from strata.run.door import BadInput
from strata.run.resume import main_root
from strata.sae import disk
from strata.sae.knobs import From, Train
from strata.sae.rules.topk import TopK
from strata.sae.sae import SAE
from strata.sae.training import training
from strata.sae.training.autoencoder import Autoencoder, fold
from strata.sae.training.fit import Fitted

OF_BLOCK = re.compile(r"blocks\.(\d+)\.hook_\w+")  # hooks by other names cannot be compared


def take(
    given: From, rows: Activations, knobs: Train, seed: int, device: torch.device
) -> tuple[Fitted, SAE, Train, dict[str, Any]]:
    """Load the SAE that ``given`` names, and return it in the form of a training that ran.

    Return the SAE without a history; an untrained SAE of its size; the ``knobs``, changed to say what the SAE is; and
    the metadata of its cfg.json, which say where it belongs.
    """
    sae, config = load(given, rows)
    metadata, ours = config.get("metadata") or {}, rows.meta["model"]["name"]
    if (theirs := metadata.get("model_name")) not in (None, ours):  # one model has several names
        sys.stderr.write(f"train: {given.folder} is said to be for {theirs}; it is judged on activations of {ours}\n")

    sae = sae.to(device)
    knobs = described(sae, config, rows, knobs)
    return Fitted({"best": sae}), untrained(sae, rows, knobs, seed), knobs, metadata


def load(given: From, rows: Activations) -> tuple[SAE, dict[str, Any]]:
    """Read the SAE and its configuration, from the workspace or else the main checkout.

    Raises BadInput where the bytes are not those that params.yaml pins, the SAE's latents are sums of parts, or its
    width or hook is not that of ``rows``.
    """
    places = (Path(given.folder), main_root() / given.folder)
    folder = next((place for place in places if (place / disk.CONFIG).is_file()), None)
    if folder is None:
        raise BadInput(
            f"params.yaml: train.from names {given.folder}, which holds no {disk.CONFIG}; "
            f"`python -m src.convert SOURCE {given.folder}` makes an SAE's folder"
        )
    if (fingerprint := disk.fingerprint(folder)) != given.sha256:
        raise BadInput(f"params.yaml: train.from.sha256 must be that of {given.folder}, which is {fingerprint}")

    sae, config = disk.load(folder)
    if sae.groups is not None:
        raise BadInput(
            f"{given.folder} has latents that are sums of parts, which merge could not merge again; make it "
            "with merge.encoder: mean"
        )
    if sae.width != rows.width:
        raise BadInput(f"{given.folder} is for width {sae.width}, but layer {rows.layer} has width {rows.width}")
    theirs, ours = (config.get("metadata") or {}).get("hook_name"), hook_name(rows)
    if isinstance(theirs, str) and OF_BLOCK.fullmatch(theirs) and _point(theirs) != _point(ours):
        raise BadInput(
            f"{given.folder} is for {theirs}, but layer {rows.layer} has {ours}; give it its own layer's SAE"
        )
    return sae, config


def _point(hook: str) -> str:
    """Give both names of one place the same name: what a block reads is what the block before it wrote."""
    before = re.fullmatch(r"blocks\.([1-9]\d*)\.hook_resid_pre", hook)
    return f"blocks.{int(before.group(1)) - 1}.hook_resid_post" if before else hook


@torch.inference_mode()
def described(sae: SAE, config: dict[str, Any], rows: Activations, knobs: Train) -> Train:
    """Change ``knobs`` to say what the SAE is: its rule, its number of latents, and as k its l0 on validation rows."""
    first, end = rows.split("validation")
    if first == end:
        raise BadInput("there are no validation rows to count active latents on; raise fetch.corpus.validation")
    blocks = batches.blocks(rows, first, end, sae.decoder.device)
    l0 = quality.reconstruction(sae.reconstruct, blocks, rows.scale, rows.median_norm)["l0"]
    rule = (config.get("metadata") or {}).get("training_architecture") or config["architecture"]
    return knobs.model_copy(update={"rule": str(rule), "latents": sae.latents, "k": max(1, round(l0))})


def untrained(sae: SAE, rows: Activations, knobs: Train, seed: int) -> SAE:
    """Return the SAE with which a training by ``knobs`` would begin, with top-k as its rule."""
    device = sae.decoder.device
    random = torch.Generator().manual_seed(seed)
    model = Autoencoder(rows.width, knobs.latents, random, knobs.init, sae.decoder_activation).to(device)
    return fold(model, TopK(knobs.k), training.scale_of(rows, device))
