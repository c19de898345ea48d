"""Write and read SAE folders in SAELens 6's own layout: `cfg.json`, `sae_weights.safetensors`, `sparsity.safetensors`.

`SAE.load_from_disk` of SAELens opens them as they are. batchtopk is stored as jumprelu with its calibrated threshold,
because SAELens can train batchtopk but not load it.

Two kinds of SAE have no place in that layout. They get architectures of our own, which SAELens does not know and
refuses. A decoder that ends in tanh or sigmoid: e.g. strata_jumprelu_tanh, with the ``scale`` in `cfg.json` and the
``mean`` among the tensors. A merged SAE, whose codes are sums of the codes of its parts: strata_jumprelu_groups, with
the number of ``parts`` in `cfg.json`, and ``groups`` and ``shares`` among the tensors.

The architecture standard, a ReLU, is read too. `src.convert` reads the other formats of other tools.

The header of the weights holds the hash of the tensors, which is checked when they are read. Files of other tools have
no such hash.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from strata.run import door
from strata.run.door import BadInput
from strata.run.files import read_json, replacing, save_tensors, sha256, write_json, write_tensors
from strata.sae.engine.nonlinearity import Nonlinearity
from strata.sae.sae import NO_GROUP, SAE

CONFIG, WEIGHTS, SPARSITY = "cfg.json", "sae_weights.safetensors", "sparsity.safetensors"
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
GROUPS = "_groups"  # the end of a merged SAE's architecture: strata_jumprelu_groups, strata_topk_tanh_groups …
ARCHITECTURES |= {f"strata_{name.removeprefix('strata_')}{GROUPS}": kind for name, kind in list(ARCHITECTURES.items())}
ARCHITECTURES["standard"] = ("standard", "identity")


def fingerprint(folder: Path) -> str:
    """Return the SHA-256 of an SAE: that of the hashes of its two files. BadInput where one of them is missing."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise BadInput(f"{folder / name} is missing")
    return hashlib.sha256("".join(sha256(folder / name) for name in (CONFIG, WEIGHTS)).encode()).hexdigest()


def decoder_hash(sae: SAE) -> str:
    """Return what the latents of an SAE are known by: the first 16 digits of the SHA-256 of its decoder, in float32."""
    rows = sae.decoder.detach().float().cpu().contiguous()
    return hashlib.sha256(rows.numpy().tobytes()).hexdigest()[:16]


def save(folder: Path, sae: SAE, metadata: dict[str, Any], density: Tensor | None = None) -> None:
    """Write an SAE to ``folder``. `cfg.json` comes last, so that its presence means a complete SAE.

    ``metadata``: what `cfg.json` says beside the SAE itself. ``density``: (latent,) the share of rows on which each
    latent is active, where it is known already; it goes to `sparsity.safetensors`.
    """
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

    # How latents become active: the top k, or a threshold.
    if sae.k is not None:
        config |= {"k": sae.k, "rescale_acts_by_decoder_norm": False}
    else:
        assert sae.threshold is not None
        config["architecture"] = "jumprelu"
        tensors["threshold"] = sae.threshold

    # A decoder that ends in tanh or sigmoid.
    if sae.mean is not None:
        config |= {"architecture": f"strata_{config['architecture']}_{sae.decoder_activation}", "scale": sae.scale}
        tensors["mean"] = sae.mean
    tensors = {name: tensor.float().cpu() for name, tensor in tensors.items()}

    # A merged SAE. Its groups are whole numbers, and stay so.
    if sae.groups is not None and sae.shares is not None:
        name = config["architecture"].removeprefix("strata_")
        config |= {"architecture": f"strata_{name}{GROUPS}", "parts": sae.parts}
        tensors |= {"groups": sae.groups.cpu(), "shares": sae.shares.float().cpu()}

    with replacing(folder / WEIGHTS) as temporary:
        save_tensors(temporary, tensors, {HASH: _hash(tensors)})
    if density is not None:
        save_density(folder, density)
    write_json(folder / CONFIG, {**config, "metadata": {"sae_lens_version": FORMAT, **metadata}})


def save_density(folder: Path, density: Tensor) -> None:
    """Write `sparsity.safetensors` to an SAE's ``folder``: the log10 of ``density``, as :func:`save` has it."""
    write_tensors(folder / SPARSITY, {"sparsity": torch.log10(density.float() + 1e-10)})


def _weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file. BadInput where it is missing, damaged, or its tensors are not those of its hash."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            expected_hash = (file.metadata() or {}).get(HASH)
    except FileNotFoundError:
        raise BadInput(f"{path} is missing") from None
    except OSError as error:
        raise BadInput(f"{path} is no file that can be read: {error}") from None
    except SafetensorError as error:
        raise BadInput(f"{path} is damaged: {error}") from None

    if expected_hash is not None and expected_hash != _hash(tensors):
        raise BadInput(f"{path} is damaged: its tensors do not have the hash that its header says; write it again")
    return tensors


def _hash(tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 of ``tensors`` on the CPU, by name: of their names and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True)
class _Layout:
    """What `cfg.json` says of the tensors beside it.

    ``kind``: topk, jumprelu or standard, how latents become active. ``parts``: rows of the encoder, in a merged SAE
    more than its ``latents``. ``scale``: of a decoder that ends in tanh or sigmoid, else 1.
    """

    kind: str
    activation: Nonlinearity
    grouped: bool
    width: int
    latents: int
    parts: int
    scale: float

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor, by name."""
        shapes: dict[str, tuple[int, ...]] = {
            "W_enc": (self.width, self.parts),
            "b_enc": (self.parts,),
            "W_dec": (self.latents, self.width),
            "b_dec": (self.width,),
        }
        if self.kind == "jumprelu":
            shapes["threshold"] = (self.parts,)
        if self.activation != "identity":
            shapes["mean"] = (self.width,)
        if self.grouped:
            shapes |= {"groups": (self.parts,), "shares": (self.parts,)}
        return shapes


def load(folder: Path) -> tuple[SAE, dict[str, Any]]:
    """Read an SAE and its configuration, `cfg.json`, from ``folder``.

    Raises BadInput where a file is missing or damaged, where names or shapes of tensors are not those that `cfg.json`
    asks for, and for an SAE that Strata cannot hold.
    """
    config = read_json(folder / CONFIG)
    layout = _layout(config, folder / CONFIG)
    tensors = _checked_tensors(folder / WEIGHTS, layout)
    if config.get("normalize_activations", "none") != "none" or config.get("rescale_acts_by_decoder_norm"):
        raise BadInput(f"{folder / CONFIG} asks for a normalisation at run time, which Strata folds in beforehand")

    # A ReLU is a threshold of 0. An encoder that reads x instead of x − b_dec gets b_dec W_enc into its bias.
    if layout.kind == "standard":
        tensors["threshold"] = torch.zeros(layout.latents)
    if not config.get("apply_b_dec_to_input", True):
        tensors["b_enc"] = tensors["b_enc"] + tensors["b_dec"] @ tensors["W_enc"]

    sae = SAE(
        encoder=tensors["W_enc"].T.contiguous(),
        b_enc=tensors["b_enc"],
        decoder=tensors["W_dec"],
        b_dec=tensors["b_dec"],
        k=config["k"] if layout.kind == "topk" else None,
        threshold=tensors.get("threshold"),
        decoder_activation=layout.activation,
        scale=layout.scale,
        mean=tensors.get("mean"),
        groups=tensors.get("groups"),
        shares=tensors.get("shares"),
    )
    return sae, config


def _layout(config: Any, path: Path) -> _Layout:
    """Check the ``config`` that ``path`` holds, and return what it says of the tensors."""
    if not isinstance(config, dict):
        raise BadInput(f"{path} is not an object, so it is no configuration of an SAE")
    name = config.get("architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise BadInput(
            f"{path} is of architecture {name!r}; Strata reads {', '.join(ARCHITECTURES)}, and some "
            "others through `python -m src.convert`"
        )
    kind, activation = ARCHITECTURES[name]
    grouped = name.endswith(GROUPS)

    for key in ("d_in", "d_sae", *["k"] * (kind == "topk"), *["parts"] * grouped):
        if not isinstance(config.get(key), int):
            raise BadInput(f"{path}: {key} is {config.get(key)!r}, not a whole number")
    latents = config["d_sae"]
    parts = config["parts"] if grouped else latents
    if kind == "topk" and not 0 < config["k"] <= parts:
        raise BadInput(f"{path}: k is {config['k']}, but there are {parts} latents")

    door.of_kind(f"{path}: metadata", config.get("metadata") or {}, dict, "it must be an object")

    scale = config.get("scale") if activation != "identity" else 1.0
    if not isinstance(scale, int | float) or not scale > 0:
        raise BadInput(f"{path}: scale is {scale!r}, not a number above 0")
    return _Layout(kind, activation, grouped, config["d_in"], latents, parts, float(scale))


def _checked_tensors(path: Path, layout: _Layout) -> dict[str, Tensor]:
    """Read the tensors of ``path``, floats as float32, and check that they are those that ``layout`` asks for."""
    tensors = {  # other tools also store 16-bit floats
        name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in _weights(path).items()
    }
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if shapes != layout.shapes():
        raise BadInput(f"{path} holds {shapes}, but cfg.json asks for {layout.shapes()}")

    if layout.grouped:
        groups, latents = tensors["groups"], layout.latents
        if groups.dtype is not torch.int64 or not bool(((groups >= NO_GROUP) & (groups < latents)).all()):
            raise BadInput(f"{path}: groups must be whole numbers from {NO_GROUP} to {latents - 1}, one a part")
    return tensors
