"""The result of reading an SAE of another tool, and how a file's tensors become an SAE."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from strata.run import door
from strata.run.door import BadInput
from strata.run.files import read_json
from strata.sae.sae import SAE


@dataclass(frozen=True)
class Found:
    """An SAE that was read. ``format`` and ``kind`` say what it was before, for example sparsify and topk.

    ``metadata``: its model, hook and the like, named as in `cfg.json`. ``notes``: sentences that the user should read.
    ``density``: (latent,) the share of tokens on which each latent is active, where the source says so.
    """

    sae: SAE
    format: str
    kind: str
    metadata: dict[str, Any]
    notes: tuple[str, ...] = ()
    density: Tensor | None = None


def sae_of(
    encoder: Tensor,
    b_enc: Tensor,
    decoder: Tensor,
    b_dec: Tensor,
    *,
    centred: bool,
    k: int | None = None,
    threshold: Tensor | float = 0.0,
) -> SAE:
    """Make an SAE of ``encoder`` and ``decoder`` (latent, width), ``b_enc`` (latent,) and ``b_dec`` (width,).

    ``threshold``: one number, or one for each latent (latent,); it is ignored with ``k``. ``centred``: the source
    computes h = (x − b_dec) Wᵀ + b_enc, as an SAE here does; else h = x Wᵀ + b_enc, and W b_dec is added to the bias.
    """
    if not centred:
        b_enc = (b_enc.double() + encoder.double() @ b_dec.double()).float()
    theta = threshold if isinstance(threshold, Tensor) else torch.full_like(b_enc, threshold)
    tensors = [tensor.contiguous() for tensor in (encoder, b_enc, decoder, b_dec)]
    return SAE(*tensors, k=k, threshold=None if k is not None else theta.expand_as(b_enc).contiguous())


def take(tensors: Mapping[str, Any], shapes: Mapping[str, str], where: Path | str, **sizes: int) -> dict[str, Tensor]:
    """Check that ``tensors`` have exactly the names and shapes of ``shapes``; return them, floats as float32.

    A shape is a text of words, ``"latent width"``. A word stands for the same number in all shapes, which ``sizes`` may
    fix. Raises BadInput for a tensor that is missing, not expected, of another shape, or not finite.
    """
    if strange := [name for name, tensor in tensors.items() if not isinstance(tensor, Tensor)]:
        raise BadInput(f"{where}: {strange[0]} is a {type(tensors[strange[0]]).__name__}, not a tensor")
    if wrong := [*(shapes.keys() - tensors.keys()), *(tensors.keys() - shapes.keys())]:
        raise BadInput(f"{where} {_compared(tensors, shapes)} ({', '.join(sorted(wrong))})")

    known_sizes = dict(sizes)  # word -> number, learned from the first tensor that has the word
    for name, shape in shapes.items():
        words, lengths = shape.split(), tuple(tensors[name].shape)
        if len(words) != len(lengths) or any(
            known_sizes.setdefault(word, length) != length for word, length in zip(words, lengths, strict=True)
        ):
            fixed = f", where {', '.join(f'{word} is {size}' for word, size in sizes.items())}" if sizes else ""
            raise BadInput(f"{where} {_compared(tensors, shapes)} ({name}){fixed}")
        if not bool(tensors[name].isfinite().all()):
            raise BadInput(f"{where}: {name} holds numbers that are not finite")
    return {name: tensors[name].float() if tensors[name].is_floating_point() else tensors[name] for name in shapes}


def _compared(tensors: Mapping[str, Tensor], shapes: Mapping[str, str]) -> str:
    """Write which tensors a file holds and which ones it should hold, for messages."""
    holds = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in sorted(tensors.items()))
    wants = ", ".join(f"{name} ({shape.replace(' ', ', ')})" for name, shape in sorted(shapes.items()))
    return f"holds {holds or 'nothing'}, but such an SAE has {wants}"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a whole safetensors file. Raises BadInput where it is missing or damaged."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise BadInput(f"{path} is missing") from None
    except OSError as error:
        raise BadInput(f"{path} is no file that can be read: {error}") from None
    except SafetensorError as error:
        raise BadInput(f"{path} is damaged: {error}") from None


def configuration(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file. Raises BadInput where it is missing, broken or no object."""
    config = read_json(path)
    if not isinstance(config, dict):
        raise BadInput(f"{path} is not an object, so it is no configuration of an SAE")
    return config


def part(config: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    """Return the object that a configuration holds under ``key``, {} where there is none; refuse what is no object."""
    value = config.get(key)
    return door.of_kind(f"{path}: {key}", {} if value is None else value, dict, "it must be an object")


def whole(config: Mapping[str, Any], key: str, path: Path) -> int:
    """Read a whole number above 0 from a configuration, or refuse it."""
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise BadInput(f"{path}: {key} is {value!r}, not a whole number above 0")
    return value


def top(k: int, latents: int, path: Path) -> int:
    """Return ``k`` if there are as many latents, or refuse it."""
    if not 0 < k <= latents:
        raise BadInput(f"{path}: k is {k}, but there are {latents} latents")
    return k
