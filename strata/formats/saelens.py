"""Folders of SAELens, versions 3 to 6: finished SAEs and the checkpoints of a training.

h = (x − b_dec) W_enc + b_enc, or x W_enc + b_enc where ``apply_b_dec_to_input`` is false

standard: relu(h)        topk: the k largest of relu(h)        jumprelu: h · 1[h > threshold]·1[h > 0]
gated: with u = h without its bias, (u eʳ + b_mag) · 1[u + b_gate > 0]·1[u eʳ + b_mag > 0]

A gated SAE is read as a jumprelu one: with h = u eʳ + b_mag, the gate u + b_gate > 0 is h > b_mag − b_gate eʳ.

``rescale_acts_by_decoder_norm``: codes are h times the norms n of the rows of W_dec, and the decoder is W_dec / n.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from strata.formats.found import Found, configuration, part, read_tensors, sae_of, take, top, whole
from strata.run.door import BadInput
from strata.sae import disk
from strata.sae.sae import SAE

CONFIG, WEIGHTS, DENSITY, SCALER = (
    "cfg.json",
    "sae_weights.safetensors",
    "sparsity.safetensors",
    "activation_scaler.json",
)
TRAINED = ("batchtopk", "matryoshka_batchtopk")  # architectures of checkpoints; the finished SAE is a jumprelu one
BASE = {"W_enc": "width latent", "b_enc": "latent", "W_dec": "latent width", "b_dec": "width"}
MORE = {
    "standard": {},
    "topk": {},
    "jumprelu": {"threshold": "latent"},
    "gated": {"b_gate": "latent", "b_mag": "latent", "r_mag": "latent"},
    **{name: {"topk_threshold": ""} for name in TRAINED},
}
KEPT = ("model_name", "hook_name", "hook_head_index", "context_size", "prepend_bos", "dataset_path", "neuronpedia_id")


def read(folder: Path) -> Found:
    """Read a folder with `cfg.json` and `sae_weights.safetensors`. An SAE of ours has this layout too."""
    path = folder / CONFIG
    config = configuration(path)
    if str(config.get("architecture")).startswith("strata_"):
        sae, config = disk.load(folder)
        metadata = part(config, "metadata", path)
        return Found(sae, "Strata", config["architecture"], metadata, density=_density(folder, sae.latents))

    config = _as_version_6(config, path)
    kind = config["architecture"]
    _check(config, path)

    tensors = read_tensors(folder / WEIGHTS)
    _drop_ones(tensors, folder / WEIGHTS)
    if kind == "jumprelu" and "log_threshold" in tensors:  # checkpoints of older versions
        tensors["threshold"] = tensors.pop("log_threshold").exp()

    shapes = BASE | MORE[kind]
    if kind == "gated":
        shapes = {name: shape for name, shape in shapes.items() if name != "b_enc"}
    width, latents = whole(config, "d_in", path), whole(config, "d_sae", path)
    tensors = take(tensors, shapes, folder / WEIGHTS, width=width, latent=latents)

    sae = _made(_scaled(tensors, config, folder), config, path)
    notes = ("rows are heads side by side, [head × d_head]",) if config.get("reshape_activations") == "hook_z" else ()
    return Found(sae, "SAELens", kind, config["metadata"], notes, _density(folder, sae.latents))


def _as_version_6(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return a configuration, which is that of ``path``, in the form of version 6.

    In older versions, what is now `metadata` stood beside the sizes, and topk was the name of an activation function.
    """
    metadata = part(config, "metadata", path)
    converted = {"architecture": "standard", **config, "metadata": metadata}
    if metadata.get("sae_lens_version"):
        return converted

    function = config.get("activation_fn_str", config.get("activation_fn", "relu"))
    if function == "topk":
        converted |= {"architecture": "topk", "k": part(config, "activation_fn_kwargs", path).get("k")}
    elif function != "relu":
        converted["architecture"] = f"standard with {function}"
    if config.get("normalize_activations") is True:
        converted["normalize_activations"] = "expected_average_only_in"

    facts = {"hook_name": config.get("hook_point"), **config}
    return {**converted, "metadata": {name: facts[name] for name in KEPT if facts.get(name) is not None} | metadata}


def _check(config: dict[str, Any], path: Path) -> None:
    """Refuse a configuration that no SAE here can express."""
    kind = config["architecture"]
    if not isinstance(kind, str) or kind not in MORE:
        raise BadInput(
            f"{path} is of architecture {kind!r}, which cannot be said here; {', '.join(MORE)} of SAELens can"
        )
    normalised = config.get("normalize_activations") or "none"
    if normalised == "expected_average_only_in" and not (path.parent / SCALER).exists():
        raise BadInput(
            f"{path}: it was trained on activations of another scale (normalize_activations is {normalised}), which "
            "the folder does not say; let SAELens fold it in: SAE.from_pretrained(release, id).save_model(folder)"
        )
    if normalised not in ("none", "expected_average_only_in"):
        raise BadInput(
            f"{path}: normalize_activations is {normalised}, done anew for each row, which no weights can say"
        )


def _drop_ones(tensors: dict[str, Tensor], path: Path) -> None:
    """Remove ``scaling_factor`` from the tensors. Raises BadInput unless it is 1 everywhere."""
    scaling = tensors.pop("scaling_factor", None)
    if scaling is not None and not torch.allclose(scaling.float(), torch.ones_like(scaling, dtype=torch.float32)):
        raise BadInput(f"{path}: scaling_factor is not 1 everywhere; fold it into W_dec with the SAELens that made it")


def _scaled(tensors: dict[str, Tensor], config: dict[str, Any], folder: Path) -> dict[str, Tensor]:
    """Change the weights so that they act on raw activations.

    The weights of a checkpoint act on s x, where the scale s is in a file beside them.
    """
    scaler = configuration(folder / SCALER) if (folder / SCALER).exists() else {}
    if scaler.get("has_whitening"):
        raise BadInput(f"{folder / SCALER}: the activations were whitened; save the SAE with save_inference_model")
    if (s := scaler.get("scaling_factor")) is None:
        return tensors
    if not isinstance(s, int | float) or not s > 0:
        raise BadInput(f"{folder / SCALER}: scaling_factor is {s!r}, not a number above 0")

    changed = {"W_enc": tensors["W_enc"] * s, "W_dec": tensors["W_dec"] / s, "b_dec": tensors["b_dec"] / s}
    # The threshold is compared with h times the norms of W_dec, which have become smaller by s.
    if "topk_threshold" in tensors and config.get("rescale_acts_by_decoder_norm"):
        changed["topk_threshold"] = tensors["topk_threshold"] / s
    return tensors | changed


def _made(tensors: dict[str, Tensor], config: dict[str, Any], path: Path) -> SAE:
    """Make an SAE of the tensors of any architecture that :func:`_check` lets pass."""
    kind, encoder, decoder = config["architecture"], tensors["W_enc"].T, tensors["W_dec"]  # both (latent, width)
    k, threshold = None, tensors.get("threshold", tensors.get("topk_threshold", 0.0))
    if kind == "gated":
        magnitude = tensors["r_mag"].exp()  # eʳ
        encoder, bias = encoder * magnitude[:, None], tensors["b_mag"]
        threshold = bias - tensors["b_gate"] * magnitude
    else:
        bias = tensors["b_enc"]
    if kind == "topk":
        k = top(whole(config, "k", path), len(decoder), path)

    if config.get("rescale_acts_by_decoder_norm") and kind in ("topk", *TRAINED):
        norm = decoder.norm(dim=1)
        if not bool((norm > 0).all()):
            raise BadInput(f"{path}: rescale_acts_by_decoder_norm divides by the norm of W_dec's rows, and one is 0")
        encoder, bias, decoder = encoder * norm[:, None], bias * norm, decoder / norm[:, None]

    centred = bool(config.get("apply_b_dec_to_input", True))
    return sae_of(encoder, bias, decoder, tensors["b_dec"], centred=centred, k=k, threshold=threshold)


def _density(folder: Path, latents: int) -> Tensor | None:
    """Read the share of tokens on which each latent is active (latent,); None where no file says it.

    The file holds its logarithm to base 10, to which SAELens adds 1e-10 before.
    """
    path = folder / DENSITY
    if not path.is_file():
        return None
    logarithm = take(read_tensors(path), {"sparsity": "latent"}, path, latent=latents)["sparsity"]
    return (10.0 ** logarithm.double() - 1e-10).clamp(0, 1)
