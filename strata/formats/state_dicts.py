"""Bare state dicts of four older systems, told apart by their names. All read x as it is: h = x Wᵀ + b.

Spindle: enc, dec; relu(h), or beside a ``k`` the k largest of h as they are. Integral Superposition: the same without a
bias in dec. Growth Signals: encoder.0, decoder.0; relu(h); the decoder may end in tanh or sigmoid, which the file does
not say. GhostTrack: W_enc, W_dec; h · 1[h > threshold], one threshold. Linear's weights are (out, in), so that a
decoder is (width, latent).
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch

from strata.formats import state
from strata.formats.found import Found, sae_of, take, top
from strata.run.door import BadInput
from strata.sae.engine.nonlinearity import Nonlinearity

INSIDE = ("model_state_dict", "state_dict")  # where a checkpoint keeps it
PREFIXES = ("_orig_mod.", "module.")  # what torch.compile and DataParallel put before a name
SYSTEMS = {
    "Spindle": ("enc", "dec", ("dec.bias",)),
    "Integral Superposition": ("enc", "dec", ()),
    "Growth Signals": ("encoder.0", "decoder.0", ("decoder.0.bias",)),
    "GhostTrack": ("W_enc", "W_dec", ("W_dec.bias", "threshold")),
}
NEGATIVE = "where a row has fewer than k positive pre-activations, Spindle keeps negative ones, which become 0 here"


def read(path: Path, ending: str | None) -> Found:
    """A `.pt`. ``ending``: what Growth Signals' decoder ends in: identity, tanh or sigmoid."""
    held = state.read(path)
    inside = next((held[name] for name in INSIDE if isinstance(held.get(name), dict)), held)
    tensors = {_bare(str(name)): tensor for name, tensor in inside.items()}
    system = _system(set(tensors), path)
    enc, dec, more = SYSTEMS[system]
    shapes = {f"{enc}.weight": "latent width", f"{enc}.bias": "latent", f"{dec}.weight": "width latent"}
    shapes |= {name: "width" for name in more if name.endswith(".bias")}
    threshold = tensors.pop("threshold", 0.0)
    found = take(tensors, shapes, path)
    encoder, b_enc, decoder = (found[f"{name}"] for name in list(shapes)[:3])
    b_dec = found.get(f"{dec}.bias", torch.zeros(len(decoder)))
    k = held.get("k") if inside is not held else None
    if k is not None:
        k = top(int(k), len(encoder), path)
    sae = sae_of(encoder, b_enc, decoder.T, b_dec, centred=False, k=k, threshold=_one(threshold, path))
    kind = "topk" if k is not None else "jumprelu" if system == "GhostTrack" else "relu"
    if system == "Growth Signals":
        if (bend := _ending(ending, path)) != "identity":
            sae, kind = replace(sae, decoder_activation=bend, mean=torch.zeros(sae.width)), f"relu, {bend}"
    elif ending is not None:
        raise BadInput(f"{path} is of {system}, whose decoder ends in nothing; leave out {ending!r}")
    return Found(sae, system, kind, {}, (NEGATIVE,) if k is not None else ())


def _bare(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _system(names: set[str], path: Path) -> str:
    for system, (enc, dec, more) in SYSTEMS.items():
        if names == {f"{enc}.weight", f"{enc}.bias", f"{dec}.weight", *more}:
            return system
    known = "; ".join(f"{system}: {enc}.weight …" for system, (enc, *_) in SYSTEMS.items())
    raise BadInput(f"{path} holds {', '.join(sorted(names)[:8]) or 'nothing'}, which no known system does ({known})")


def _one(threshold: Any, path: Path) -> float:
    """GhostTrack's threshold. One below 0 would let negative codes through."""
    value = float(threshold) if not isinstance(threshold, torch.Tensor) or threshold.numel() == 1 else float("nan")
    if not value >= 0:
        raise BadInput(f"{path}: threshold must be one number, 0 or above; a lower one keeps codes below 0")
    return value


def _ending(ending: str | None, path: Path) -> Nonlinearity:
    for known in get_args(Nonlinearity):
        if ending == known:
            return known
    raise BadInput(
        f"{path} is of Growth Signals, and does not say what its decoder ends in: add one of "
        f"{', '.join(get_args(Nonlinearity))}" + (f" instead of {ending!r}" if ending else "")
    )
