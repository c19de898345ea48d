"""Measure one layer's SAE, beside its controls, on held-out text."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from strata.corpus import read
from strata.corpus.read import SPLITS
from strata.lm.model import DTYPES, LanguageModel, load
from strata.measure import controls, quality
from strata.rows import batches
from strata.rows.shards import Activations, Contexts
from strata.splicing.held_out import held_out
from strata.training.fit import Fitted
from strata.training.knobs import Train


def speaking(lm: Path, dtype: str, device: torch.device) -> LanguageModel | None:
    """Load the language model in the folder ``lm``; None where it predicts no tokens."""
    if read.speechless(read.lm_meta(lm)):
        return None
    name, options = read.lm_path(lm)
    return load(name, DTYPES[dtype], device, **options)


@torch.inference_mode()
def measure(
    fitted: Fitted, activations: Activations, contexts: Contexts, lm: LanguageModel | None, knobs: Train
) -> tuple[dict[str, Any], Tensor]:
    """Measure the best checkpoint and its controls on the test rows.

    Without an ``lm``, for activations of no language model, every ce metric is None.

    Returns what `reports/train/<L>.json` says of the SAE, and the share of all stored rows on which each latent is
    active, (latent,) float64.
    """
    sae, device = fitted.best, fitted.best.decoder.device
    candidates = {
        "sae": sae.reconstruct,
        **controls.of(activations, fitted.untrained.reconstruct, knobs.k, device),
    }
    hook = activations.meta["hook"]
    metrics, predictions = held_out(candidates, activations, contexts, hook, lm, knobs.ce_tokens, device)

    # Dead latents take a pass over all stored rows, which only the SAE gets.
    counts = quality.firing_counts(sae, batches.blocks(activations, 0, activations.rows, device))
    for candidate_metrics in metrics.values():
        candidate_metrics["dead"] = None
    metrics["sae"]["dead"] = float((counts == 0).float().mean())

    # The outliers among the test rows, with their commonest tokens as text.
    tokens, _ = contexts.rows("test")
    test = activations.blocks(*activations.split("test"))
    outliers = quality.outliers(test, torch.from_numpy(tokens), activations.median_norm)
    outliers["tokens"] = [
        {"token": lm.tokenizer.decode([token]) if lm else str(token), "count": count}
        for token, count in outliers["tokens"]
    ]

    rows = {split: activations.split(split)[1] - activations.split(split)[0] for split in SPLITS}
    frequency = counts.double() / activations.rows
    return {
        "layer": activations.layer,
        "model": {**activations.meta["model"], "hook": hook, "width": activations.width},
        "corpus": activations.meta["corpus"],
        "rule": knobs.rule,
        "latents": knobs.latents,
        "k": knobs.k,
        "batch_size": knobs.batch_size,
        "epochs": knobs.epochs,
        "rows": {**rows, "all": activations.rows, "ce_tokens": len(predictions.document)},
        "test": metrics.pop("sae"),
        "controls": metrics,
        "outliers": outliers,
        "density": _histogram(frequency),
        **({"unread": contexts.meta["unread"]} if "unread" in contexts.meta else {}),
        "best": {"step": fitted.best_step, "score": fitted.best_score} if fitted.history else None,
    }, frequency


def _histogram(frequency: Tensor, bins: int = 40) -> dict[str, Any]:
    """Count latents by log10 of their firing ``frequency`` (latent,), from one row in a million to every row.

    Dead latents are left out.
    """
    edges = np.linspace(-6, 0, bins + 1)
    alive = frequency[frequency > 0].log10().clamp(-6, 0).numpy()
    return {"log10_edges": [round(float(x), 4) for x in edges], "counts": np.histogram(alive, edges)[0].tolist()}
