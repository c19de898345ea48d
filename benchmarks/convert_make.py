"""SAEs that SAELens, sparsify and dictionary_learning make, and save by their own code, for `benchmarks.convert_read`.

Runs in the tool's own environment. Directions are random, biases and thresholds such that few latents are active on the
rows: what is tested is files. dictionary_learning's are trained for a few steps by its trainers, on scaled rows.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

from strata.run.door import BadInput, run
from strata.run.files import write_tensors

LATENTS, K = 1024, 32
Made = Iterator[tuple[Path, Callable[[Tensor], tuple[Tensor, Tensor]]]]


class Parts:
    """Weights that fit the rows ``x``."""

    def __init__(self, x: Tensor) -> None:
        random = torch.Generator().manual_seed(0)
        self.mean = x.mean(0)
        self.dec = normalize(torch.randn(LATENTS, x.shape[1], generator=random), dim=1)
        self.dec *= 0.5 + torch.rand(LATENTS, 1, generator=random)
        self.enc = self.dec.T.clone()
        h = (x - self.mean) @ self.enc
        self.size = float(h.std())
        self.b = 0.1 * self.size * torch.randn(LATENTS, generator=random)
        self.cut = torch.quantile((h + self.b)[:512].flatten(), 1 - K / LATENTS)
        self.threshold = self.cut * (0.8 + 0.4 * torch.rand(LATENTS, generator=random))
        self.gate = -self.threshold
        self.log_scale = 0.3 * torch.randn(LATENTS, generator=random)


def saelens(x: Tensor, target: Path) -> Made:
    """Finished SAEs of four architectures, and a batchtopk checkpoint with its scaler."""
    from sae_lens import SAE, TrainingSAE  # pyright: ignore[reportMissingImports]
    from sae_lens.training.activation_scaler import ActivationScaler  # pyright: ignore[reportMissingImports]

    parts = Parts(x)
    base = {"W_enc": parts.enc, "b_enc": parts.b, "W_dec": parts.dec, "b_dec": parts.mean}
    sizes = {"d_in": x.shape[1], "d_sae": LATENTS, "dtype": "float32", "device": "cpu"}
    gated = {"b_gate": parts.gate, "b_mag": parts.b, "r_mag": parts.log_scale}
    kinds: dict[str, tuple[dict[str, Any], dict[str, Tensor]]] = {
        "standard": ({"apply_b_dec_to_input": False}, base),
        "topk": ({"k": K, "rescale_acts_by_decoder_norm": True}, base),
        "jumprelu": ({}, base | {"threshold": parts.threshold}),
        "gated": ({}, {name: tensor for name, tensor in base.items() if name != "b_enc"} | gated),
    }
    for kind, (config, tensors) in kinds.items():
        about = {"architecture": kind, **sizes, **config, "metadata": {"sae_lens_version": "6.54.12"}}
        made = SAE.from_dict(about)
        made.load_state_dict(tensors)
        made.save_model(target / kind)
        yield target / kind, lambda x, made=made: (found := made.encode(x), made.decode(found))
    s = x.shape[1] ** 0.5 / float(x.norm(dim=1).mean())
    about = {"architecture": "batchtopk", **sizes, "k": float(K), "normalize_activations": "expected_average_only_in"}
    training = TrainingSAE.from_dict(about)
    threshold = (s * parts.cut).double()
    scaled = {"b_enc": s * parts.b, "b_dec": s * parts.mean, "topk_threshold": threshold}
    training.load_state_dict(base | scaled)
    training.save_model(target / "checkpoint")
    ActivationScaler(s).save(str(target / "checkpoint/activation_scaler.json"))
    training.fold_activation_norm_scaling_factor(s)
    training.save_inference_model(target / "finished")
    made = SAE.load_from_disk(target / "finished")
    for name in ("checkpoint", "finished"):
        yield target / name, lambda x: (found := made.encode(x), made.decode(found))


def sparsify(x: Tensor, target: Path) -> Made:
    """With the number of latents given, and as an expansion."""
    from sparsify import SparseCoder, SparseCoderConfig  # pyright: ignore[reportMissingImports]

    parts = Parts(x)
    for name, config in {
        "given": {"num_latents": LATENTS},
        "expanded": {"expansion_factor": 2, "multi_topk": True},
    }.items():
        coder = SparseCoder(x.shape[1], SparseCoderConfig(k=K, **config))
        n = coder.num_latents
        tile = -(-n // LATENTS)
        weights = [parts.enc.T.repeat(tile, 1)[:n], parts.b.repeat(tile)[:n] * torch.linspace(1, 2, n)]
        coder.load_state_dict(
            {
                "encoder.weight": weights[0], "encoder.bias": weights[1],
                "W_dec": parts.dec.repeat(tile, 1)[:n], "b_dec": parts.mean,
            }
        )  # fmt: skip
        coder.save_to_disk(target / name / "layers.9")

        def forward(x: Tensor, coder: Any = coder, n: int = n) -> tuple[Tensor, Tensor]:
            found = coder.encode(x)
            codes = torch.zeros(len(x), n).scatter(1, found.top_indices, found.top_acts)
            return codes, coder.decode(found.top_acts, found.top_indices)

        yield target / name / "layers.9", forward


def dictionary_learning(x: Tensor, target: Path) -> Made:
    """What each trainer saves after a few steps."""
    from dictionary_learning.trainers import (  # pyright: ignore[reportMissingImports]
        batch_top_k,
        gdm,
        jumprelu,
        matryoshka_batch_top_k,
        standard,
        top_k,
    )  # fmt: skip
    from dictionary_learning.training import trainSAE  # pyright: ignore[reportMissingImports]
    from dictionary_learning.utils import load_dictionary  # pyright: ignore[reportMissingImports]

    steps = 60
    common = {
        "steps": steps, "activation_dim": x.shape[1], "dict_size": LATENTS, "layer": 9, "lm_name": "tiny/lm",
        "warmup_steps": 1, "submodule_name": "resid_post_layer_9", "device": "cpu",
    }  # fmt: skip
    by_k = {"k": K, "threshold_start_step": 5}
    trainers: list[dict[str, Any]] = [
        {"trainer": standard.StandardTrainer, "sparsity_warmup_steps": 2},
        {"trainer": standard.StandardTrainerAprilUpdate, "sparsity_warmup_steps": 2},
        {"trainer": gdm.GatedSAETrainer, "sparsity_warmup_steps": 2},
        {"trainer": jumprelu.JumpReluTrainer, "sparsity_warmup_steps": 2},
        {"trainer": top_k.TopKTrainer, **by_k},
        {"trainer": batch_top_k.BatchTopKTrainer, **by_k},
        {"trainer": matryoshka_batch_top_k.MatryoshkaBatchTopKTrainer, **by_k, "group_fractions": [0.25, 0.75]},
    ]
    batches = [x[torch.randperm(len(x), generator=torch.Generator().manual_seed(n))[:256]] for n in range(steps + 200)]
    trainSAE(
        iter(batches), [common | trainer for trainer in trainers], steps, save_dir=str(target),
        normalize_activations=True, device="cpu",
    )  # fmt: skip
    for number, trainer in enumerate(trainers):
        name = f"{number}-{trainer['trainer'].__name__}"
        (target / f"trainer_{number}").rename(target / name)
        made, _ = load_dictionary(str(target / name), device="cpu")
        yield target / name, lambda x, made=made: (found := made.encode(x), made.decode(found))


TOOLS = {"saelens": saelens, "sparsify": sparsify, "dictionary_learning": dictionary_learning}


def main(tool: str, rows: str, target: str) -> None:
    """TOOL: saelens, sparsify or dictionary_learning. ROWS: of benchmarks.saelens_export. TARGET: a folder."""
    if tool not in TOOLS or not Path(rows).is_file():
        raise BadInput(f"{tool} must be one of {', '.join(TOOLS)}, and {rows} a file of benchmarks.saelens_export")
    x = load_file(rows)["x"]
    for folder, forward in TOOLS[tool](x, Path(target) / tool):
        with torch.no_grad():
            codes, reconstruction = forward(x)
        write_tensors(folder / "forward.safetensors", {"x": x, "codes": codes, "reconstruction": reconstruction})
        print(f"{folder}: {float((codes > 0).sum(1).float().mean()):.1f} active latents a row")


if __name__ == "__main__":
    run(main)
