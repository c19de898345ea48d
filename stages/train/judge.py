"""Measure one layer's SAE, beside its controls, on held-out text."""

import csv
import io
from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from strata.corpus.read import SPLITS
from strata.lm.model import Hook, LanguageModel
from strata.measure import controls, quality
from strata.rows import batches
from strata.rows.shards import Activations, Contexts
from strata.sae.knobs import Train
from strata.sae.sae import SAE
from strata.splicing.held_out import held_out

HISTORY: tuple[str, ...] = (  # the columns of `<L>.csv`
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


@torch.inference_mode()
def measure(
    sae: SAE, untrained: SAE, activations: Activations, contexts: Contexts, lm: LanguageModel | None, knobs: Train
) -> tuple[dict[str, Any], Tensor]:
    """Measure an SAE and its controls on the test split.

    Return what `reports/train/<L>.json` says of them, and (latents,) the share of all stored rows on which each latent
    fires. Without an ``lm``, for activations of no language model, every ce metric is null.
    """
    device = sae.decoder.device
    mean = activations.mean.to(device)

    def blocks(first: int, end: int) -> Iterator[Tensor]:
        return batches.blocks(activations, first, end, device)

    candidates = {
        "sae": sae.reconstruct,
        "mean": controls.mean(mean),
        "pca": controls.pca(blocks(*activations.split("train")), mean, knobs.k),
        "untrained": untrained.reconstruct,
    }
    hook = activations.meta["hook"]
    metrics, ce_tokens = held_out(candidates, activations, contexts, hook, lm, knobs.ce_tokens, device)

    # Only the SAE gets the pass over all stored rows that tells which latents are dead.
    firing_counts = quality.firing_counts(sae, blocks(0, activations.rows))
    for values in metrics.values():
        values["dead"] = None
    metrics["sae"]["dead"] = float((firing_counts == 0).float().mean())

    tokens, _ = contexts.rows("test")
    test = activations.blocks(*activations.split("test"))
    outliers = quality.outliers(test, torch.from_numpy(tokens), activations.median_norm)
    outliers["tokens"] = [
        {"token": lm.tokenizer.decode([token]) if lm else str(token), "count": count}
        for token, count in outliers["tokens"]
    ]

    rows = {split: activations.split(split)[1] - activations.split(split)[0] for split in SPLITS}
    firing_rate = firing_counts.double() / activations.rows
    return {
        "layer": activations.layer,
        "model": {**activations.meta["model"], "hook": hook, "width": activations.width},
        "corpus": activations.meta["corpus"],
        "rule": knobs.rule,
        "latents": knobs.latents,
        "k": knobs.k,
        "batch_size": knobs.batch_size,
        "epochs": knobs.epochs,
        "rows": {**rows, "all": activations.rows, "ce_tokens": ce_tokens},
        "test": metrics.pop("sae"),
        "controls": metrics,
        "outliers": outliers,
        "density": _histogram(firing_rate),
        **({"unread": contexts.meta["unread"]} if "unread" in contexts.meta else {}),
    }, firing_rate


def _histogram(firing_rate: Tensor, bins: int = 40) -> dict[str, Any]:
    """Count latents by log10 of their firing rate, from one in a million to always. Dead latents are left out."""
    edges = np.linspace(-6, 0, bins + 1)
    living = firing_rate[firing_rate > 0].log10().clamp(-6, 0).numpy()
    counts, _ = np.histogram(living, edges)
    return {"log10_edges": [round(float(edge), 4) for edge in edges], "counts": counts.tolist()}


def metadata(
    activations: Activations, contexts: Contexts, knobs: Train, test: dict[str, Any], given: dict[str, Any] | None
) -> dict[str, Any]:
    """Return what cfg.json tells other tools of where the SAE belongs. The names are SAELens's, where it has one.

    ``given``: metadata of an imported SAE, passed through unchanged (we do not know its training k); None if we
    trained it.
    """
    meta = activations.meta
    origin = (given or {}).get("imported_from")
    return {
        "model_name": meta["model"]["name"],
        "hook_name": hook_name(activations),
        "context_size": contexts.meta["context"],
        "prepend_bos": _of_tokens(activations),
        "exclude_special_tokens": True,
        "training_architecture": knobs.rule,
        **({"training_architecture_details": {"k": knobs.k}} if given is None else {}),
        "l0": test["l0"],
        "strata": {
            "model_fingerprint": meta["model"]["fingerprint"],
            "corpus": meta["corpus"],
            "forward": meta["forward"],
            **({"normalize": meta["normalize"]} if "normalize" in meta else {}),
            "scale": activations.scale,
            "median_norm": activations.median_norm,
            **({"given": given} if given is not None else {}),
        },
        **({"imported_from": origin} if origin else {}),
    }


def hook_name(activations: Activations) -> str:
    """Name the place in the model that the rows come from, as SAELens does: ``blocks.9.hook_resid_post``.

    Rows that are documents have no block; their hook keeps its own name.
    """
    hook = activations.meta["hook"]
    return f"blocks.{activations.layer}.hook_{hook}" if _of_tokens(activations) else hook


def _of_tokens(activations: Activations) -> bool:
    """Tell whether a row is a token of a language model. Otherwise it is a document, and there are no blocks."""
    return activations.meta["hook"] in get_args(Hook)


def history_csv(history: list[dict[str, Any]]) -> str:
    """Write the history as CSV. A validation column is empty at points where nothing was validated."""
    text = io.StringIO()
    writer = csv.DictWriter(text, HISTORY, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()
