"""SAEs as other tools keep them, made by hand, each with its tool's own equation in dense arithmetic."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from strata.run.files import write_json

__all__ = ["load_file", "save_file"]  # for the tests, too
LATENTS, WIDTH, K = 48, 16, 5
Forward = Callable[[Tensor], tuple[Tensor, Tensor]]  # x -> codes, reconstruction


@dataclass(frozen=True)
class Weights:
    """Encoder and decoder (latent, width), and vectors."""

    enc: Tensor
    dec: Tensor
    b: Tensor
    b_dec: Tensor
    more: Tensor  # (latent,) above 0: thresholds
    signed: Tensor  # (latent,) of both signs: gate biases, log scales


def weights(seed: int = 0) -> Weights:
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    enc, dec = normal(LATENTS, WIDTH), normal(LATENTS, WIDTH)
    b, b_dec, more = 0.3 * normal(LATENTS), normal(WIDTH), torch.rand(LATENTS, generator=random)
    return Weights(enc, dec, b, b_dec, more, 0.5 * normal(LATENTS))


def rows() -> Tensor:
    return torch.randn(300, WIDTH, generator=torch.Generator().manual_seed(7)) + 0.5


def top(h: Tensor, k: int = K) -> Tensor:
    """h where it is among the k largest of its row, else 0."""
    values, places = h.topk(k, dim=1)
    return torch.zeros_like(h).scatter(1, places, values)


def saelens(folder: Path, architecture: str, tensors: dict[str, Tensor], **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "sae_weights.safetensors")
    metadata = {"sae_lens_version": "6.54.12", "hook_name": "blocks.3.hook_resid_post", "model_name": "tiny/lm"}
    sizes = {"architecture": architecture, "d_in": WIDTH, "d_sae": LATENTS, "dtype": "float32"}
    write_json(folder / "cfg.json", {**sizes, "metadata": metadata, **config})
    return folder


def _base(w: Weights) -> dict[str, Tensor]:
    return {"W_enc": w.enc.T, "b_enc": w.b, "W_dec": w.dec, "b_dec": w.b_dec}


def saelens_standard(folder: Path) -> tuple[Path, Forward]:
    w = weights()

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        codes = ((x - w.b_dec) @ w.enc.T + w.b).relu()
        return codes, codes @ w.dec + w.b_dec

    ones = {"scaling_factor": torch.ones(LATENTS)}
    return saelens(folder, "standard", _base(w) | ones), forward


def saelens_uncentred(folder: Path) -> tuple[Path, Forward]:
    w = weights()

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        h = x @ w.enc.T + w.b
        codes = h.relu() * (h > w.more)
        return codes, codes @ w.dec + w.b_dec

    return saelens(folder, "jumprelu", _base(w) | {"threshold": w.more}, apply_b_dec_to_input=False), forward


def saelens_topk(folder: Path) -> tuple[Path, Forward]:
    """With rescale_acts_by_decoder_norm, under which the largest are others than without."""
    w = weights()
    norm = w.dec.norm(dim=1)

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        codes = top(((x - w.b_dec) @ w.enc.T + w.b) * norm).relu()
        return codes, (codes / norm) @ w.dec + w.b_dec

    return saelens(folder, "topk", _base(w), k=K, rescale_acts_by_decoder_norm=True), forward


def saelens_gated(folder: Path) -> tuple[Path, Forward]:
    w = weights()
    scale, gate = 0.4 * w.signed.flip(0), w.signed

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        centred = x - w.b_dec
        open_ = (centred @ w.enc.T + gate > 0).float()
        codes = open_ * (centred @ (w.enc.T * scale.exp()) + w.b).relu()
        return codes, codes @ w.dec + w.b_dec

    tensors = {name: tensor for name, tensor in _base(w).items() if name != "b_enc"}
    return saelens(folder, "gated", tensors | {"b_gate": gate, "b_mag": w.b, "r_mag": scale}), forward


def saelens_checkpoint(folder: Path) -> tuple[Path, Forward]:
    """Of a batchtopk training, which sees 0.25 x and codes times the norms of W_dec; codes come out in those units."""
    w, s, theta = weights(), 0.25, 1.3
    norm = w.dec.norm(dim=1)
    write_json(folder / "activation_scaler.json", {"scaling_factor": s, "has_whitening": False})

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        h = ((s * x - w.b_dec) @ w.enc.T + w.b) * norm
        codes = h.relu() * (h > theta)
        return codes / s, ((codes / norm) @ w.dec + w.b_dec) / s

    theirs = _base(w) | {"topk_threshold": torch.tensor(theta, dtype=torch.float64)}
    about = {"k": 5.0, "rescale_acts_by_decoder_norm": True, "normalize_activations": "expected_average_only_in"}
    return saelens(folder, "batchtopk", theirs, **about), forward


def saelens_legacy(folder: Path) -> tuple[Path, Forward]:
    """As version 3 wrote it: topk is the name of a function, and facts stand beside the sizes."""
    w = weights()

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        codes = top((x - w.b_dec) @ w.enc.T + w.b).relu()
        return codes, codes @ w.dec + w.b_dec

    saelens(folder, "standard", _base(w))
    function = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "normalize_activations": "none"}
    facts = {"d_in": WIDTH, "d_sae": LATENTS, "hook_name": "blocks.3.hook_resid_post", "model_name": "gpt2"}
    write_json(folder / "cfg.json", {**function, **facts})
    return folder, forward


def sparsify(folder: Path) -> tuple[Path, Forward]:
    w, home = weights(), folder / "layers.3"
    home.mkdir(parents=True)
    tensors = {"encoder.weight": w.enc, "encoder.bias": w.b, "W_dec": w.dec, "b_dec": w.b_dec}
    save_file(tensors, home / "sae.safetensors")
    sizes = {"expansion_factor": LATENTS // WIDTH, "num_latents": 0, "k": K, "d_in": WIDTH}
    flags = {"normalize_decoder": True, "multi_topk": True, "skip_connection": False, "transcode": False}
    write_json(home / "cfg.json", {"activation": "topk", **sizes, **flags})
    write_json(folder / "config.json", {"model": "tiny/lm"})

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        codes = top(((x - w.b_dec) @ w.enc.T + w.b).relu())
        return codes, codes @ w.dec + w.b_dec

    return home, forward


def dictionary(folder: Path, kind: str, tensors: dict[str, Tensor], **trainer: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, folder / "ae.pt")
    place = {"layer": 3, "lm_name": "tiny/lm", "submodule_name": "resid_post_layer_3"}
    write_json(folder / "config.json", {"trainer": {"dict_class": kind, **place, **trainer}, "buffer": {"io": "out"}})
    return folder


def _linear(w: Weights) -> dict[str, Tensor]:
    return {"encoder.weight": w.enc, "encoder.bias": w.b, "decoder.weight": w.dec.T.contiguous()}


def dl_relu(folder: Path) -> tuple[Path, Forward]:
    """AutoEncoder, whose loader makes directions of length 1."""
    w = weights()
    norm = w.dec.norm(dim=1)

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        codes = ((x - w.b_dec) @ w.enc.T + w.b).relu()
        return codes * norm, codes @ w.dec + w.b_dec

    return dictionary(folder, "AutoEncoder", _linear(w) | {"bias": w.b_dec}), forward


def dl_new(folder: Path) -> tuple[Path, Forward]:
    w = weights()

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        codes = (x @ w.enc.T + w.b).relu()
        return codes, codes @ w.dec + w.b_dec

    return dictionary(folder, "AutoEncoderNew", _linear(w) | {"decoder.bias": w.b_dec}), forward


def dl_gated(folder: Path) -> tuple[Path, Forward]:
    w = weights()
    scale = 0.4 * w.signed.flip(0)

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        u = (x - w.b_dec) @ w.enc.T
        codes = (u + w.signed > 0).float() * (scale.exp() * u + w.b).relu()
        return codes, codes @ w.dec + w.b_dec

    tensors = {name: tensor for name, tensor in _linear(w).items() if name != "encoder.bias"}
    tensors |= {"r_mag": scale, "gate_bias": w.signed, "mag_bias": w.b, "decoder_bias": w.b_dec}
    return dictionary(folder, "GatedAutoEncoder", tensors), forward


def _batch(k: int, threshold: float) -> dict[str, Tensor]:
    return {"k": torch.tensor(k, dtype=torch.int), "threshold": torch.tensor(threshold)}


def dl_topk(folder: Path) -> tuple[Path, Forward]:
    w = weights()

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        codes = top(((x - w.b_dec) @ w.enc.T + w.b).relu())
        return codes, codes @ w.dec + w.b_dec

    return dictionary(folder, "AutoEncoderTopK", _linear(w) | {"b_dec": w.b_dec} | _batch(K, 0.7), k=K), forward


def dl_batchtopk(folder: Path, threshold: float = 0.7) -> tuple[Path, Forward]:
    w = weights()

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        positive = ((x - w.b_dec) @ w.enc.T + w.b).relu()
        codes = positive * (positive > threshold)
        return codes, codes @ w.dec + w.b_dec

    tensors = _linear(w) | {"b_dec": w.b_dec} | _batch(K, threshold)
    return dictionary(folder, "BatchTopKSAE", tensors, k=K), forward


def dl_unset(folder: Path) -> tuple[Path, Forward]:
    return dl_batchtopk(folder, -1.0)


def dl_jumprelu(folder: Path) -> tuple[Path, Forward]:
    """A checkpoint in its own folder; b_dec is not subtracted."""
    w = weights()

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        h = x @ w.enc.T + w.b
        codes = (h * (h > w.more)).relu()
        return codes, codes @ w.dec + w.b_dec

    tensors = {name: tensor.contiguous() for name, tensor in _base(w).items()} | {"threshold": w.more}
    home = dictionary(folder, "JumpReluAutoEncoder", tensors)
    (home / "checkpoints").mkdir()
    return (home / "ae.pt").rename(home / "checkpoints/ae_1000.pt"), forward


def dl_matryoshka(folder: Path) -> tuple[Path, Forward]:
    w, theta = weights(), 0.4

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        positive = ((x - w.b_dec) @ w.enc.T + w.b).relu()
        codes = positive * (positive > theta)
        return codes, codes @ w.dec + w.b_dec

    tensors = {name: tensor.contiguous() for name, tensor in _base(w).items()} | _batch(K, theta)
    return dictionary(folder, "MatryoshkaBatchTopKSAE", tensors | {"group_sizes": torch.tensor([16, 32])}), forward


def gemma_scope(folder: Path) -> tuple[Path, Forward]:
    w = weights()
    folder.mkdir(parents=True)
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in (_base(w) | {"threshold": w.more}).items()}
    np.savez(folder / "params.npz", **arrays)

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        h = x @ w.enc.T + w.b
        codes = (h > w.more) * h.relu()
        return codes, codes @ w.dec + w.b_dec

    return folder, forward


def _state(folder: Path, name: str, value: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(value, folder / name)
    return folder / name


def spindle(folder: Path) -> tuple[Path, Forward]:
    w = weights()
    state = {"enc.weight": w.enc, "enc.bias": w.b, "dec.weight": w.dec.T, "dec.bias": w.b_dec}

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        codes = (x @ w.enc.T + w.b).relu()
        return codes, codes @ w.dec + w.b_dec

    return _state(folder, "sae.pt", state), forward


def spindle_topk(folder: Path) -> tuple[Path, Forward]:
    w = weights()
    state = {"enc.weight": w.enc, "enc.bias": w.b, "dec.weight": w.dec.T, "dec.bias": w.b_dec}

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        codes = top(x @ w.enc.T + w.b)
        return codes, codes @ w.dec + w.b_dec

    return _state(folder, "k.pt", {"state_dict": state, "input_dim": WIDTH, "hidden_dim": LATENTS, "k": K}), forward


def integral(folder: Path) -> tuple[Path, Forward]:
    w = weights()

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        codes = (x @ w.enc.T + w.b).relu()
        return codes, codes @ w.dec

    return _state(folder, "sae.pt", {"enc.weight": w.enc, "enc.bias": w.b, "dec.weight": w.dec.T}), forward


def ghosttrack(folder: Path) -> tuple[Path, Forward]:
    w, theta = weights(), 0.1

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        h = x @ w.enc.T + w.b
        codes = h * (h > theta)
        return codes, codes @ w.dec + w.b_dec

    state = {"W_enc.weight": w.enc, "W_enc.bias": w.b, "W_dec.weight": w.dec.T, "W_dec.bias": w.b_dec}
    held = {"model_state_dict": state | {"threshold": torch.tensor(theta)}, "epoch": 3}
    return _state(folder, "sae_layer_3_best.pt", held), forward


def growth(folder: Path, ending: str = "identity") -> tuple[Path, Forward]:
    w = weights()
    bend = {"identity": lambda u: u, "tanh": torch.tanh, "sigmoid": torch.sigmoid}[ending]

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        codes = (x @ w.enc.T + w.b).relu()
        return codes, bend(codes @ w.dec + w.b_dec)

    names = ("encoder.0.weight", "encoder.0.bias", "decoder.0.weight", "decoder.0.bias")
    state = dict(zip(names, (w.enc, w.b, w.dec.T, w.b_dec), strict=True))
    held = {"epoch": 9, "model_state_dict": {f"_orig_mod.{name}": tensor for name, tensor in state.items()}}
    return _state(folder, "9_100000.pth", held | {"optimizer_state_dict": {}}), forward


SOURCES: dict[str, Callable[[Path], tuple[Path, Forward]]] = {
    made.__name__: made
    for made in (
        *(saelens_standard, saelens_uncentred, saelens_topk, saelens_gated, saelens_checkpoint, saelens_legacy),
        *(sparsify, dl_relu, dl_new, dl_gated, dl_topk, dl_batchtopk, dl_unset, dl_jumprelu, dl_matryoshka),
        *(gemma_scope, spindle, spindle_topk, integral, ghosttrack),
    )
}
