"""Folders of sparsify: `cfg.json` and `sae.safetensors`, in a folder that is named after the hookpoint.

f = the k largest of relu((x − b_dec) encoder.weightᵀ + encoder.bias)        x̂ = f W_dec + b_dec

with encoder.weight and W_dec both (latent, width).
"""

import re
from pathlib import Path
from typing import Any

from strata.formats.found import Found, configuration, read_tensors, sae_of, take, top, whole
from strata.run.door import BadInput
from strata.run.files import absolute, read_json, write_json, write_tensors
from strata.sae.sae import SAE

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
OURS = "metadata.json"  # our metadata: sparsify has no place for it, and would complain about it in cfg.json
SHAPES = {"encoder.weight": "latent width", "encoder.bias": "latent", "W_dec": "latent width", "b_dec": "width"}
CANNOT = {
    "transcode": "it predicts another activation than it reads",
    "skip_connection": "it adds a linear map of what it reads",
    "signed": "it keeps codes below 0",
}
HOOKS = {"": "resid_post", ".mlp": "mlp_out", ".attn": "attn_out", ".self_attn": "attn_out", ".attention": "attn_out"}


def read(folder: Path) -> Found:
    """Read the folder of a hookpoint. Raises BadInput for an SAE that cannot be expressed here."""
    path = folder / CONFIG
    config = configuration(path)
    for name, why in CANNOT.items():
        if config.get(name):
            raise BadInput(f"{path}: {name} is {config[name]!r}: {why}, which an SAE here cannot say")
    if (activation := config.get("activation", "topk")) != "topk":
        raise BadInput(f"{path}: activation is {activation!r}; only topk can be said here")

    width, k = whole(config, "d_in", path), whole(config, "k", path)
    latents = config.get("num_latents") or width * whole(config, "expansion_factor", path)
    tensors = take(read_tensors(folder / WEIGHTS), SHAPES, folder / WEIGHTS, latent=latents, width=width)
    sae = sae_of(
        encoder=tensors["encoder.weight"],
        b_enc=tensors["encoder.bias"],
        decoder=tensors["W_dec"],
        b_dec=tensors["b_dec"],
        centred=True,  # h is computed of x − b_dec: the formula above
        k=top(k, latents, path),
    )
    return Found(sae, "sparsify", "topk", _place(folder))


def _place(folder: Path) -> dict[str, Any]:
    """Return our own metadata if the folder has it; else the hook and the model, as far as sparsify says them.

    The hook is in the folder's name, and the model in the configuration of the run, one folder up.
    """
    if (folder / OURS).is_file():
        return configuration(folder / OURS)

    metadata: dict[str, Any] = {}
    folder = absolute(folder)  # the hub's cache consists of links
    hookpoint = re.search(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)((?:\.\w+)?)$", folder.name)  # layers.3.mlp
    if hookpoint and hookpoint.group(2) in HOOKS:
        metadata["hook_name"] = f"blocks.{hookpoint.group(1)}.hook_{HOOKS[hookpoint.group(2)]}"
    run = read_json(path) if (path := folder.parent / "config.json").is_file() else None
    if isinstance(run, dict) and isinstance(model := run.get("model"), str):
        metadata["model_name"] = model
    return metadata


def write(folder: Path, sae: SAE, metadata: dict[str, Any]) -> None:
    """Write an SAE with top-k. Raises BadInput for one with thresholds.

    sparsify subtracts b_dec from x, as an SAE here does, so all tensors go over as they are. Merged SAEs and decoders
    that end in tanh or sigmoid are refused by the caller, :mod:`strata.formats.write`.
    """
    if sae.k is None:
        raise BadInput("sparsify has no thresholds, only top-k; write it as saelens or dictionary_learning")

    weights = {"encoder.weight": sae.encoder, "encoder.bias": sae.b_enc, "W_dec": sae.decoder, "b_dec": sae.b_dec}
    write_tensors(folder / WEIGHTS, {name: tensor.float().cpu() for name, tensor in weights.items()})

    config = {
        "activation": "topk",
        "expansion_factor": max(1, sae.latents // sae.width),
        "normalize_decoder": True,  # of sparsify's training: reading does not rescale the decoder
        "num_latents": sae.latents,
        "k": sae.k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": sae.width,
    }
    write_json(folder / OURS, metadata)
    write_json(folder / CONFIG, config)
