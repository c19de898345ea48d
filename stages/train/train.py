"""Measure one layer's SAE, beside its controls, on held-out text."""

import csv
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages import quality, splice, training
from stages.door import BadInput
from stages.extract.shards import Activations, Contexts
from stages.fetch.read import SPLITS
from stages.lm import LanguageModel
from stages.params import check
from stages.sae.knobs import Train
from stages.sae.sae import SAE
from stages.train import controls

HISTORY: tuple[str, ...] = (
    "step",
    "tokens",
    "lr",
    "loss",
    "mse",
    "fvu",
    "l0",
    "dead",
    "validation_fvu",
    "validation_l0",
    "validation_dead",
    "score",
)


def knobs_of(train: dict[str, Any], override: dict[str, Any], layer: int) -> Train:
    """The section ``train`` with what ``by_layer`` says of one layer on top."""
    return check({**train, **override}, Train, "params.yaml: train" + f" with by_layer.{layer}" * bool(override))


@torch.inference_mode()
def measure(
    sae: SAE, untrained: SAE, activations: Activations, contexts: Contexts, lm: LanguageModel | None, knobs: Train
) -> tuple[dict[str, Any], Tensor]:
    """What `reports/train/<L>.json` says of the SAE, and each latent's firing frequency over all stored rows.

    ``lm`` None (activations of no language model) leaves every ce metric null.
    """
    first, end = activations.split("test")
    if end == first:
        raise BadInput("there are no test rows to judge on; extract more tokens, or raise fetch.corpus.test")

    device = sae.decoder.device
    mean = activations.mean.to(device)

    def blocks(first: int, end: int) -> Iterator[Tensor]:
        return training.blocks(activations, first, end, device)

    candidates = {
        "sae": sae.reconstruct,
        "mean": controls.mean(mean),
        "pca": controls.pca(blocks(*activations.split("train")), mean, knobs.k),
        "untrained": untrained.reconstruct,
    }
    found = {
        name: quality.reconstruction(f, blocks(first, end), activations.scale, activations.median_norm)
        for name, f in candidates.items()
    }
    counts = quality.firing_counts(sae, blocks(0, activations.rows))
    for values in found.values():
        values["dead"] = None  # one pass over all stored rows is for the SAE alone
    found["sae"]["dead"] = float((counts == 0).float().mean())
    ce, ce_tokens = _cross_entropy(lm, contexts, activations, candidates, knobs.ce_tokens)
    for name in found:
        found[name] |= ce[name]

    tokens, _ = contexts.rows("test")
    outliers = quality.outliers(activations.blocks(first, end), torch.from_numpy(tokens), activations.median_norm)
    outliers["tokens"] = [
        {"token": lm.tokenizer.decode([token]) if lm else str(token), "count": count}
        for token, count in outliers["tokens"]
    ]
    rows = {split: activations.split(split)[1] - activations.split(split)[0] for split in SPLITS}
    frequency = counts.double() / activations.rows
    return {
        "layer": activations.layer,
        "model": {**activations.meta["model"], "hook": activations.meta["hook"], "width": activations.width},
        "rule": knobs.rule,
        "latents": knobs.latents,
        "k": knobs.k,
        "rows": {**rows, "all": activations.rows, "ce_tokens": ce_tokens},
        "test": found.pop("sae"),
        "controls": found,
        "outliers": outliers,
        "density": _histogram(frequency),
    }, frequency


def _cross_entropy(
    lm: LanguageModel | None,
    contexts: Contexts,
    activations: Activations,
    candidates: dict[str, quality.Reconstruct],
    budget: int,
) -> tuple[dict[str, dict[str, float | None]], int]:
    """The ce metrics of each candidate on the first ``budget`` held-out tokens or a few more, whole contexts."""
    if lm is None or budget == 0:
        return {name: dict.fromkeys(splice.METRICS) for name in candidates}, 0
    first, end = contexts.split("test")
    tokens, documents = contexts.read(first, end)
    kept = documents >= 0
    enough = int(np.searchsorted(kept[:, 1:].sum(1).cumsum(), budget)) + 1
    replaces: dict[str, splice.Replace] = {name: lambda x, f=f: f(x.float())[0] for name, f in candidates.items()}
    replaces["zero"] = lambda x: torch.zeros_like(x)
    verdicts = splice.verdict(
        lm,
        torch.from_numpy(tokens[:enough]),
        torch.from_numpy(kept[:enough]),
        activations.meta["hook"],
        activations.layer,
        replaces,
    )
    return {name: splice.scores(verdicts, name) for name in candidates}, int(kept[:enough, 1:].sum())


def _histogram(frequency: Tensor, bins: int = 40) -> dict[str, Any]:
    """Counts of latents by log10 of their firing frequency, from one in a million to always; the dead are left out."""
    edges = np.linspace(-6, 0, bins + 1)
    alive = frequency[frequency > 0].log10().clamp(-6, 0).numpy()
    return {"log10_edges": [round(float(x), 4) for x in edges], "counts": np.histogram(alive, edges)[0].tolist()}


def metadata(activations: Activations, contexts: Contexts, knobs: Train, test: dict[str, Any]) -> dict[str, Any]:
    """What cfg.json tells other tools of where the SAE belongs; the names are SAELens's, as far as it has them."""
    meta = activations.meta
    point = {"mlp_out": "hook_mlp_out", "attn_out": "hook_attn_out"}.get(meta["hook"], f"hook_{meta['hook']}")
    return {
        "model_name": meta["model"]["name"],
        "hook_name": f"blocks.{activations.layer}.{point}",
        "context_size": contexts.meta["context"],
        "prepend_bos": True,
        "exclude_special_tokens": True,
        "training_architecture": knobs.rule,
        "training_architecture_details": {"k": knobs.k},
        "l0": test["l0"],
        "strata": {
            "model_fingerprint": meta["model"]["fingerprint"],
            "corpus": meta["corpus"],
            "scale": activations.scale,
            "median_norm": activations.median_norm,
        },
    }


def history_csv(history: list[dict[str, Any]]) -> str:
    """The history as CSV; a validation column is empty where nothing was validated."""
    text = io.StringIO()
    writer = csv.DictWriter(text, HISTORY, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()
