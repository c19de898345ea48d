"""Folders of dictionary_learning: `ae.pt`, and `config.json`, whose ``trainer.dict_class`` names the class in `ae.pt`.

AutoEncoder: relu((x − bias) encoder.weightᵀ + encoder.bias), with decoder.weight (width, latent).
AutoEncoderNew: has a bias on each side, and does not centre x.
GatedAutoEncoder: as in SAELens.
AutoEncoderTopK: the k largest of each row, whatever its threshold says.
BatchTopKSAE, MatryoshkaBatchTopKSAE: relu(h) · 1[relu(h) > threshold] with one threshold; where it is -1, all h > 0.
JumpReluAutoEncoder: h = x W_enc + b_enc, not centred, with a threshold for each latent.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from strata.formats import state
from strata.formats.found import Found, configuration, part, sae_of, take, top
from strata.run.door import BadInput
from strata.run.files import replacing, write_json
from strata.sae.sae import SAE

CONFIG, WEIGHTS = "config.json", "ae.pt"
# Name of a tensor -> its shape in words, see `found.take`.
LINEAR = {"encoder.weight": "latent width", "encoder.bias": "latent", "decoder.weight": "width latent"}
MATRICES = {"W_enc": "width latent", "b_enc": "latent", "W_dec": "latent width", "b_dec": "width"}
BATCH = {"k": "", "threshold": ""}
CLASSES = {
    "AutoEncoder": {"bias": "width", **LINEAR},
    "AutoEncoderNew": {**LINEAR, "decoder.bias": "width"},
    "GatedAutoEncoder": {
        "decoder_bias": "width",
        "encoder.weight": "latent width",
        **dict.fromkeys(("r_mag", "gate_bias", "mag_bias"), "latent"),
        "decoder.weight": "width latent",
    },
    "AutoEncoderTopK": {**LINEAR, "b_dec": "width", **BATCH},
    "BatchTopKSAE": {**LINEAR, "b_dec": "width", **BATCH},
    "JumpReluAutoEncoder": {**MATRICES, "threshold": "latent"},
    "MatryoshkaBatchTopKSAE": {**MATRICES, **BATCH, "group_sizes": "group"},
}
UNSET = "its threshold was never set (-1), so every positive pre-activation counts, as the class has it"


def read(path: Path) -> Found:
    """Read an `ae.pt`, or a checkpoint's `ae_1000.pt` in a folder beside the configuration.

    Raises BadInput where the configuration is missing, names an unknown class, or contradicts the tensors.
    """
    folders = path.parent, path.absolute().parent.parent
    config_path = next((folder / CONFIG for folder in folders if (folder / CONFIG).is_file()), None)
    if config_path is None:
        raise BadInput(
            f"{path.with_name(CONFIG)} is missing, and without it nothing says of which class {path.name} is"
        )

    config = configuration(config_path)
    trainer, buffer, metadata = (part(config, key, config_path) for key in ("trainer", "buffer", "metadata"))
    kind = trainer.get("dict_class")
    if not isinstance(kind, str) or kind not in CLASSES:
        raise BadInput(f"{config_path}: trainer.dict_class is {kind!r}; {', '.join(CLASSES)} can be read")
    tensors = take(state.read(path), CLASSES[kind], path)
    if "k" in tensors and trainer.get("k", int(tensors["k"])) != int(tensors["k"]):
        raise BadInput(f"{config_path}: trainer.k is {trainer['k']}, but {path.name} has k {int(tensors['k'])}")

    notes = (UNSET,) if kind in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE") and float(tensors["threshold"]) < 0 else ()
    sae = _gated(tensors) if kind == "GatedAutoEncoder" else _ungated(kind, tensors, path)
    return Found(sae, "dictionary_learning", kind, {**_place(trainer, buffer), **metadata}, notes)


def _ungated(kind: str, tensors: dict[str, Tensor], path: Path) -> SAE:
    """Make an SAE of the tensors of any class but GatedAutoEncoder."""
    centred = kind not in ("AutoEncoderNew", "JumpReluAutoEncoder")
    b_dec = tensors[{"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias"}.get(kind, "b_dec")]

    # encoder and decoder (latent, width), as ours
    if "W_enc" in tensors:
        encoder, bias, decoder = tensors["W_enc"].T, tensors["b_enc"], tensors["W_dec"]
    else:
        encoder, bias, decoder = tensors["encoder.weight"], tensors["encoder.bias"], tensors["decoder.weight"].T

    # The loader of AutoEncoder gives every direction length 1, and multiplies the code by the old length.
    if kind == "AutoEncoder":
        norm = decoder.norm(dim=1)
        if not torch.allclose(norm, torch.ones_like(norm)):
            norm = norm.clamp(min=1e-30)
            encoder, bias, decoder = encoder * norm[:, None], bias * norm, decoder / norm[:, None]

    k = top(int(tensors["k"]), len(encoder), path) if kind == "AutoEncoderTopK" else None
    threshold = tensors.get("threshold", 0.0)
    return sae_of(encoder, bias, decoder, b_dec, centred=centred, k=k, threshold=threshold)


def _gated(tensors: dict[str, Tensor]) -> SAE:
    """Write a gated SAE as a jumprelu one.

    With u = W (x − b) and h = u eʳ + mag_bias, the gate u + gate_bias > 0 is h > mag_bias − gate_bias eʳ.
    """
    magnitude, bias = tensors["r_mag"].exp(), tensors["mag_bias"]  # magnitude: eʳ
    encoder, decoder = tensors["encoder.weight"] * magnitude[:, None], tensors["decoder.weight"].T
    threshold = bias - tensors["gate_bias"] * magnitude
    return sae_of(encoder, bias, decoder, tensors["decoder_bias"], centred=True, threshold=threshold)


def _place(trainer: dict[str, Any], buffer: dict[str, Any]) -> dict[str, Any]:
    """Return the model's name, and the hook's where the configuration says that it is the residual stream."""
    metadata: dict[str, Any] = {}
    name, layer = str(trainer.get("submodule_name", "")), trainer.get("layer")
    if name.startswith("resid_post") and isinstance(layer, int) and buffer.get("io", "out") == "out":
        metadata["hook_name"] = f"blocks.{layer}.hook_resid_post"
    if isinstance(model := trainer.get("lm_name"), str):
        metadata["model_name"] = model
    return metadata


def write(folder: Path, sae: SAE, metadata: dict[str, Any]) -> None:
    """Write an SAE: top-k as an AutoEncoderTopK, thresholds as a JumpReluAutoEncoder, which has one for each latent."""
    encoder, decoder, b_dec = (tensor.float().cpu() for tensor in (sae.encoder, sae.decoder, sae.b_dec))
    b_enc = sae.b_enc.float().cpu()

    trainer: dict[str, Any] = {"activation_dim": sae.width, "dict_size": sae.latents}
    if sae.k is not None:
        trainer |= {"dict_class": "AutoEncoderTopK", "k": sae.k}
        tensors = {"encoder.weight": encoder, "encoder.bias": b_enc, "decoder.weight": decoder.T.contiguous()}
        tensors |= {"b_dec": b_dec, "k": torch.tensor(sae.k, dtype=torch.int), "threshold": torch.tensor(-1.0)}
    else:
        assert sae.threshold is not None
        trainer["dict_class"] = "JumpReluAutoEncoder"
        folded = (b_enc.double() - encoder.double() @ b_dec.double()).float()  # the class does not centre x
        tensors = {"W_enc": encoder.T.contiguous(), "b_enc": folded, "W_dec": decoder, "b_dec": b_dec}
        tensors["threshold"] = sae.threshold.float().cpu()

    with replacing(folder / WEIGHTS) as temporary:
        torch.save(tensors, temporary)
    write_json(folder / CONFIG, {"trainer": trainer | _named(metadata), "buffer": {"io": "out"}, "metadata": metadata})


def _named(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return the model and the hook under the names that dictionary_learning gives them."""
    known = {"lm_name": metadata.get("model_name"), "submodule_name": metadata.get("hook_name")}
    return {name: value for name, value in known.items() if value is not None}
