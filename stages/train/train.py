"""Train one layer's SAE and measure it, beside its controls, on held-out text."""

import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages import quality, splice
from stages.door import BadInput
from stages.extract.shards import Activations, Contexts
from stages.fetch.read import SPLITS
from stages.lm import LanguageModel
from stages.machine import CPU, put
from stages.metrics import OUTLIER
from stages.params import check
from stages.sae.autoencoder import Autoencoder, Scale, fold
from stages.sae.fit import Fitted, Judgement, fit
from stages.sae.knobs import BY_BATCH, Train, make_rule
from stages.sae.rules.topk import TopK
from stages.sae.sae import SAE, threshold_for
from stages.sae.trainer import Trainer
from stages.targets import Targets, penalty
from stages.train import controls
from stages.train.batches import Shuffled

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


def scale_of(activations: Activations, device: torch.device = CPU) -> Scale:
    """The training scale, for rows on ``device``: mean 0, and the mean of ‖s x‖² is the width."""
    s, mean = activations.scale, activations.mean
    return Scale(s, mean.to(device), 1 - s**2 * float(mean.double().square().sum()) / activations.width)


def with_threshold(sae: SAE, per_row: float, blocks: Iterator[Tensor]) -> SAE:
    """The same SAE with the one threshold that gives ``per_row`` active latents a row on ``blocks``."""
    return replace(sae, k=None, threshold=torch.full_like(sae.b_enc, threshold_for(sae, blocks, per_row)))


def train(
    activations: Activations,
    knobs: Train,
    targets: Targets,
    seed: int,
    watch: Callable[[int, dict[str, float]], None] = lambda step, values: None,
    work: Path | None = None,
    save_every: float = 60.0,
    device: torch.device = CPU,
) -> tuple[Fitted, SAE]:
    """Train on the training rows; the validation rows choose the checkpoint and batchtopk's threshold.

    ``work``: where the state of an unfinished training is looked for, and kept every ``save_every`` seconds. Returns
    the result and the untrained SAE that it started from, a control, both on ``device``.
    """
    if activations.split("validation")[0] == activations.split("validation")[1]:
        raise BadInput("there are no validation rows to choose a checkpoint by; raise fetch.corpus.validation")
    scale = scale_of(activations, device)
    shuffled = Shuffled(activations, *activations.split("train"), knobs.batch_size, knobs.window_rows, seed)
    random = torch.Generator().manual_seed(seed)
    model = Autoencoder(activations.width, knobs.latents, random, knobs.init, knobs.decoder_activation).to(device)

    def validation(limit: int | None = None) -> Iterator[Tensor]:
        first, end = activations.split("validation")
        return _blocks(activations, first, min(end, first + limit) if limit else end, device)

    def settled(sae: SAE, limit: int | None = None) -> SAE:
        return with_threshold(sae, knobs.k, validation(limit)) if knobs.rule in BY_BATCH else sae

    def batches(step: int) -> Iterator[Tensor]:
        for rows in shuffled.endless(step):
            x = put(rows, device)
            if knobs.skip_outliers:
                x = x[x.float().norm(dim=1) <= OUTLIER * activations.median_norm]
            yield scale.apply(x)

    @torch.inference_mode()
    def judge(sae: SAE, dead: float) -> Judgement:
        rows = knobs.validation_rows
        found = quality.reconstruction(
            settled(sae, rows).reconstruct, validation(rows), scale.factor, activations.median_norm
        )
        return Judgement(found["fvu"], found["l0"], found["fvu"] + penalty(found["l0"], dead, targets))

    untrained = fold(model, TopK(knobs.k), scale)
    if knobs.rule != "topk":
        untrained = with_threshold(untrained, knobs.k, validation())
    trainer = Trainer(model, make_rule(knobs).to(device), scale, knobs, shuffled.steps_per_epoch(), seed)
    fitted = fit(batches, trainer, judge, watch, f"train {activations.layer}", work, save_every)
    once = {id(sae): settled(sae) for sae in fitted.saes.values()}
    fitted.saes = {name: once[id(sae)] for name, sae in fitted.saes.items()}
    return fitted, untrained


def _blocks(activations: Activations, first: int, end: int, device: torch.device) -> Iterator[Tensor]:
    """Rows first … end-1 in order, in blocks on ``device``."""
    return (put(block, device) for block in activations.blocks(first, end))


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
        return _blocks(activations, first, end, device)

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
