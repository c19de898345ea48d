"""SAE folders in SAELens 6's own layout: `cfg.json`, `sae_weights.safetensors`, `sparsity.safetensors`.

`SAE.load_from_disk` of SAELens opens them as they are. batchtopk is stored as jumprelu with its calibrated threshold,
because SAELens can train batchtopk but not load it. A decoder that ends in tanh or sigmoid, which that layout cannot
say, gets an architecture of our own, which SAELens does not know and refuses: e.g. strata_jumprelu_tanh, with the
``scale`` in `cfg.json` and the ``mean`` among the tensors. So does a merged SAE, whose codes are sums of its parts':
strata_jumprelu_groups, with the number of ``parts`` in `cfg.json`, and ``groups`` and ``shares`` among the tensors.
standard, a ReLU, is read, too. What else other tools write, `src.convert` reads.

The header of the weights holds the hash of the tensors, which is checked when they are read; the files of other tools
have none.
"""

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from strata.run.door import BadInput
from strata.run.files import read_json, replacing, save_tensors, sha256, write_json, write_tensors
from strata.sae.engine.nonlinearity import Nonlinearity
from strata.sae.sae import NO_GROUP, SAE

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
HASH = "tensors_sha256"
FORMAT = "6.0.0"  # the oldest SAELens that reads this layout without converting it
ARCHITECTURES: dict[str, tuple[str, Nonlinearity]] = {
    "topk": ("topk", "identity"),
    "jumprelu": ("jumprelu", "identity"),
    "strata_topk_tanh": ("topk", "tanh"),
    "strata_topk_sigmoid": ("topk", "sigmoid"),
    "strata_jumprelu_tanh": ("jumprelu", "tanh"),
    "strata_jumprelu_sigmoid": ("jumprelu", "sigmoid"),
}
GROUPS = "_groups"  # what a merged SAE's architecture ends in: strata_jumprelu_groups, strata_topk_tanh_groups …
ARCHITECTURES |= {f"strata_{name.removeprefix('strata_')}{GROUPS}": what for name, what in list(ARCHITECTURES.items())}
ARCHITECTURES["standard"] = ("standard", "identity")


def fingerprint(folder: Path) -> str:
    """SHA-256 of an SAE: of its two files' hashes."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise BadInput(f"{folder / name} is missing")
    return hashlib.sha256("".join(sha256(folder / name) for name in (CONFIG, WEIGHTS)).encode()).hexdigest()


def save(folder: Path, sae: SAE, metadata: dict[str, Any], density: Tensor | None = None) -> None:
    """Write an SAE; ``cfg.json`` comes last. ``density``: (latent,) share of rows on which each latent is active."""
    tensors = {
        "W_enc": sae.encoder.T.contiguous(),
        "b_enc": sae.b_enc,
        "W_dec": sae.decoder,
        "b_dec": sae.b_dec,
    }
    config: dict[str, Any] = {
        "architecture": "topk",
        "d_in": sae.width,
        "d_sae": sae.latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
    }
    if sae.k is not None:
        config |= {"k": sae.k, "rescale_acts_by_decoder_norm": False}
    else:
        assert sae.threshold is not None
        config["architecture"] = "jumprelu"
        tensors["threshold"] = sae.threshold
    if sae.mean is not None:
        config |= {"architecture": f"strata_{config['architecture']}_{sae.decoder_activation}", "scale": sae.scale}
        tensors["mean"] = sae.mean
    tensors = {name: tensor.float().cpu() for name, tensor in tensors.items()}
    if sae.groups is not None and sae.shares is not None:
        name = config["architecture"].removeprefix("strata_")
        config |= {"architecture": f"strata_{name}{GROUPS}", "parts": sae.parts}
        tensors |= {"groups": sae.groups.cpu(), "shares": sae.shares.float().cpu()}
    with replacing(folder / WEIGHTS) as temporary:
        save_tensors(temporary, tensors, {HASH: _hash(tensors)})
    if density is not None:
        write_tensors(folder / "sparsity.safetensors", {"sparsity": torch.log10(density.float() + 1e-10)})
    write_json(folder / CONFIG, {**config, "metadata": {"sae_lens_version": FORMAT, **metadata}})


def _weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file; BadInput if they are not those that were written."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            noted = (file.metadata() or {}).get(HASH)
    except FileNotFoundError:
        raise BadInput(f"{path} is missing") from None
    except SafetensorError as error:
        raise BadInput(f"{path} is damaged: {error}") from None
    if noted is not None and noted != _hash(tensors):
        raise BadInput(f"{path} is damaged: its tensors do not have the hash that its header says; write it again")
    return tensors


def _hash(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of tensors on the CPU and their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load(folder: Path) -> tuple[SAE, dict[str, Any]]:
    """Read an SAE and its configuration; shapes and names are checked."""
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict):
        raise BadInput(f"{folder / CONFIG} is not an object, so it is no configuration of an SAE")
    name = config.get("architecture")
    if name not in ARCHITECTURES:
        raise BadInput(
            f"{folder / CONFIG} is of architecture {name!r}; Strata reads {', '.join(ARCHITECTURES)}, and some "
            "others through `python -m src.convert`"
        )
    kind, activation = ARCHITECTURES[name]
    grouped = name.endswith(GROUPS)
    for key in ("d_in", "d_sae", *["k"] * (kind == "topk"), *["parts"] * grouped):
        if not isinstance(config.get(key), int):
            raise BadInput(f"{folder / CONFIG}: {key} is {config.get(key)!r}, not a whole number")
    width, latents = config["d_in"], config["d_sae"]
    parts = config["parts"] if grouped else latents
    if kind == "topk" and not 0 < config["k"] <= parts:
        raise BadInput(f"{folder / CONFIG}: k is {config['k']}, but there are {parts} latents")
    bent = activation != "identity"
    scale = config.get("scale") if bent else 1.0
    if not isinstance(scale, int | float) or not scale > 0:
        raise BadInput(f"{folder / CONFIG}: scale is {scale!r}, not a number above 0")
    path = folder / WEIGHTS
    tensors = {  # other tools store halves too
        name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in _weights(path).items()
    }
    shapes = {"W_enc": (width, parts), "b_enc": (parts,), "W_dec": (latents, width), "b_dec": (width,)}
    if kind == "jumprelu":
        shapes["threshold"] = (parts,)
    if bent:
        shapes["mean"] = (width,)
    if grouped:
        shapes |= {"groups": (parts,), "shares": (parts,)}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != shapes:
        raise BadInput(f"{path} holds {found}, but cfg.json asks for {shapes}")
    if grouped:
        groups = tensors["groups"]
        if groups.dtype is not torch.int64 or not bool(((groups >= NO_GROUP) & (groups < latents)).all()):
            raise BadInput(f"{path}: groups must be whole numbers from {NO_GROUP} to {latents - 1}, one a part")
    if config.get("normalize_activations", "none") != "none" or config.get("rescale_acts_by_decoder_norm"):
        raise BadInput(f"{folder / CONFIG} asks for a normalisation at run time, which Strata folds in beforehand")
    if kind == "standard":
        tensors["threshold"] = torch.zeros(latents)
    if not config.get("apply_b_dec_to_input", True):
        tensors["b_enc"] = tensors["b_enc"] + tensors["b_dec"] @ tensors["W_enc"]
    return (
        SAE(
            encoder=tensors["W_enc"].T.contiguous(),
            b_enc=tensors["b_enc"],
            decoder=tensors["W_dec"],
            b_dec=tensors["b_dec"],
            k=config["k"] if kind == "topk" else None,
            threshold=tensors.get("threshold"),
            decoder_activation=activation,
            scale=float(scale),
            mean=tensors.get("mean"),
            groups=tensors.get("groups"),
            shares=tensors.get("shares"),
        ),
        config,
    )
