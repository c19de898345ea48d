"""dictionary_learning's folders: `config.json`, whose ``trainer.dict_class`` says what is in `ae.pt`.

AutoEncoder: relu((x − bias) encoder.weightᵀ + encoder.bias), decoder.weight (width, latent). AutoEncoderNew has a bias
on each side and does not centre. GatedAutoEncoder: as SAELens's. AutoEncoderTopK: the k largest a row, whatever its
threshold says. BatchTopKSAE, MatryoshkaBatchTopKSAE: relu(h) · 1[relu(h) > threshold], one threshold, and all above 0
where it is -1. JumpReluAutoEncoder: h = x W_enc + b_enc, not centred, and a threshold a latent.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from strata.formats import state
from strata.formats.found import Found, sae_of, take, top
from strata.run.door import BadInput
from strata.run.files import read_json, replacing, write_json
from strata.sae.sae import SAE

CONFIG, WEIGHTS = "config.json", "ae.pt"
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
    """`ae.pt`, or a checkpoint's `ae_1000.pt` in a folder beside the configuration."""
    folders = path.parent, path.absolute().parent.parent
    config_path = next((folder / CONFIG for folder in folders if (folder / CONFIG).is_file()), None)
    if config_path is None:
        raise BadInput(
            f"{path.with_name(CONFIG)} is missing, and without it nothing says of which class {path.name} is"
        )
    trainer = (config := read_json(config_path)).get("trainer", {})
    if (kind := trainer.get("dict_class")) not in CLASSES:
        raise BadInput(f"{config_path}: trainer.dict_class is {kind!r}; {', '.join(CLASSES)} can be read")
    found = take(state.read(path), CLASSES[kind], path)
    if "k" in found and trainer.get("k", int(found["k"])) != int(found["k"]):
        raise BadInput(f"{config_path}: trainer.k is {trainer['k']}, but {path.name} has k {int(found['k'])}")
    notes = (UNSET,) if kind in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE") and float(found["threshold"]) < 0 else ()
    sae = _gated(found) if kind == "GatedAutoEncoder" else _made(kind, found, path)
    metadata = {**_place(trainer, config.get("buffer", {})), **config.get("metadata", {})}
    return Found(sae, "dictionary_learning", kind, metadata, notes)


def _made(kind: str, found: dict[str, Tensor], path: Path) -> SAE:
    centred = kind not in ("AutoEncoderNew", "JumpReluAutoEncoder")
    by_name = {name.rpartition(".")[2] if name == "decoder.bias" else name: tensor for name, tensor in found.items()}
    b_dec = by_name["bias" if kind in ("AutoEncoder", "AutoEncoderNew") else "b_dec"]
    if "W_enc" in found:
        encoder, bias, decoder = found["W_enc"].T, found["b_enc"], found["W_dec"]
    else:
        encoder, bias, decoder = found["encoder.weight"], found["encoder.bias"], found["decoder.weight"].T
    if kind == "AutoEncoder":  # its loader gives every direction length 1, and the code what that takes
        norm = decoder.norm(dim=1)
        if not torch.allclose(norm, torch.ones_like(norm)):
            norm = norm.clamp(min=1e-30)
            encoder, bias, decoder = encoder * norm[:, None], bias * norm, decoder / norm[:, None]
    k = top(int(found["k"]), len(encoder), path) if kind == "AutoEncoderTopK" else None
    threshold = found.get("threshold", 0.0)
    return sae_of(encoder, bias, decoder, b_dec, centred=centred, k=k, threshold=threshold)


def _gated(found: dict[str, Tensor]) -> SAE:
    """With u = W (x − b) and h = u eʳ + mag_bias, the gate u + gate_bias > 0 is h > mag_bias − gate_bias eʳ."""
    grown, bias = found["r_mag"].exp(), found["mag_bias"]
    encoder, decoder = found["encoder.weight"] * grown[:, None], found["decoder.weight"].T
    threshold = bias - found["gate_bias"] * grown
    return sae_of(encoder, bias, decoder, found["decoder_bias"], centred=True, threshold=threshold)


def _place(trainer: dict[str, Any], buffer: dict[str, Any]) -> dict[str, Any]:
    """The hook, where a residual stream is said, and the model."""
    metadata: dict[str, Any] = {}
    name, layer = str(trainer.get("submodule_name", "")), trainer.get("layer")
    if name.startswith("resid_post") and isinstance(layer, int) and buffer.get("io", "out") == "out":
        metadata["hook_name"] = f"blocks.{layer}.hook_resid_post"
    if isinstance(model := trainer.get("lm_name"), str):
        metadata["model_name"] = model
    return metadata


def write(folder: Path, sae: SAE, metadata: dict[str, Any]) -> None:
    """Write top-k as an AutoEncoderTopK, and thresholds as a JumpReluAutoEncoder: BatchTopKSAE has but one."""
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
        folded = (b_enc.double() - encoder.double() @ b_dec.double()).float()
        tensors = {"W_enc": encoder.T.contiguous(), "b_enc": folded, "W_dec": decoder, "b_dec": b_dec}
        tensors["threshold"] = sae.threshold.float().cpu()
    with replacing(folder / WEIGHTS) as temporary:
        torch.save(tensors, temporary)
    write_json(folder / CONFIG, {"trainer": trainer | _named(metadata), "buffer": {"io": "out"}, "metadata": metadata})


def _named(metadata: dict[str, Any]) -> dict[str, Any]:
    known = {"lm_name": metadata.get("model_name"), "submodule_name": metadata.get("hook_name")}
    return {name: value for name, value in known.items() if value is not None}
