"""Bare state dicts of four older systems, told apart by the names of their tensors. None centres x: h = x Wᵀ + b.

Spindle: enc, dec; relu(h), or with a ``k`` in the checkpoint the k largest of h, also negative ones.
Integral Superposition: the same without a bias in dec.
Growth Signals: encoder.0, decoder.0; relu(h). The decoder may end in tanh or sigmoid, which the file does not say.
GhostTrack: W_enc, W_dec; h · 1[h > threshold] with one threshold.

The weights of a torch Linear are (out, in), so the decoder is (width, latent).
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch

from strata.formats import state
from strata.formats.found import Found, sae_of, take, top
from strata.run.door import BadInput
from strata.sae.engine.nonlinearity import Nonlinearity

INSIDE = ("model_state_dict", "state_dict")  # keys under which a checkpoint holds the state dict
PREFIXES = ("_orig_mod.", "module.")  # torch.compile and DataParallel put these before a name
SYSTEMS = {  # system -> its encoder, its decoder, its other tensors
    "Spindle": ("enc", "dec", ("dec.bias",)),
    "Integral Superposition": ("enc", "dec", ()),
    "Growth Signals": ("encoder.0", "decoder.0", ("decoder.0.bias",)),
    "GhostTrack": ("W_enc", "W_dec", ("W_dec.bias", "threshold")),
}
NEGATIVE = "where a row has fewer than k positive pre-activations, Spindle keeps negative ones, which become 0 here"


def read(path: Path, ending: str | None) -> Found:
    """Read a `.pt`. ``ending``: what the decoder of Growth Signals ends in: identity, tanh or sigmoid.

    Raises BadInput for tensors of no known system, and for an ``ending`` that is missing or means nothing.
    """
    checkpoint = state.read(path)
    state_dict = next((checkpoint[name] for name in INSIDE if isinstance(checkpoint.get(name), dict)), checkpoint)
    tensors = {_bare(str(name)): tensor for name, tensor in state_dict.items()}
    system = _system(set(tensors), path)

    encoder_name, decoder_name, other_names = SYSTEMS[system]
    shapes = {
        f"{encoder_name}.weight": "latent width",
        f"{encoder_name}.bias": "latent",
        f"{decoder_name}.weight": "width latent",
        **{name: "width" for name in other_names if name.endswith(".bias")},
    }
    threshold = tensors.pop("threshold", 0.0)
    tensors = take(tensors, shapes, path)
    encoder, b_enc = tensors[f"{encoder_name}.weight"], tensors[f"{encoder_name}.bias"]
    decoder = tensors[f"{decoder_name}.weight"]
    b_dec = tensors.get(f"{decoder_name}.bias", torch.zeros(len(decoder)))

    k = checkpoint.get("k") if state_dict is not checkpoint else None
    if k is not None:
        k = top(int(k), len(encoder), path)
    sae = sae_of(encoder, b_enc, decoder.T, b_dec, centred=False, k=k, threshold=_threshold(threshold, path))

    kind = "topk" if k is not None else "jumprelu" if system == "GhostTrack" else "relu"
    if system == "Growth Signals":
        if (nonlinearity := _ending(ending, path)) != "identity":
            sae = replace(sae, decoder_activation=nonlinearity, mean=torch.zeros(sae.width))
            kind = f"relu, {nonlinearity}"
    elif ending is not None:
        raise BadInput(f"{path} is of {system}, whose decoder ends in nothing; leave out {ending!r}")
    return Found(sae, system, kind, {}, (NEGATIVE,) if k is not None else ())


def _bare(name: str) -> str:
    """Remove the PREFIXES of a tensor's name."""
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _system(names: set[str], path: Path) -> str:
    """Find the system whose tensors have exactly these names, or refuse them."""
    for system, (enc, dec, more) in SYSTEMS.items():
        if names == {f"{enc}.weight", f"{enc}.bias", f"{dec}.weight", *more}:
            return system
    known = "; ".join(f"{system}: {enc}.weight …" for system, (enc, *_) in SYSTEMS.items())
    raise BadInput(f"{path} holds {', '.join(sorted(names)[:8]) or 'nothing'}, which no known system does ({known})")


def _threshold(threshold: Any, path: Path) -> float:
    """Read GhostTrack's threshold, one number. Refuses one below 0, which would let negative codes through."""
    value = float(threshold) if not isinstance(threshold, torch.Tensor) or threshold.numel() == 1 else float("nan")
    if not value >= 0:
        raise BadInput(f"{path}: threshold must be one number, 0 or above; a lower one keeps codes below 0")
    return value


def _ending(ending: str | None, path: Path) -> Nonlinearity:
    """Return the nonlinearity that ``ending`` names, or refuse it."""
    for known in get_args(Nonlinearity):
        if ending == known:
            return known
    raise BadInput(
        f"{path} is of Growth Signals, and does not say what its decoder ends in: add one of "
        f"{', '.join(get_args(Nonlinearity))}" + (f" instead of {ending!r}" if ending else "")
    )
