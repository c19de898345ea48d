"""Stage train@L: train one layer's SAE, or take an imported one, and judge it on held-out text."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from stages.train import imported, judge
from strata import auto
from strata.corpus import read
from strata.device import launch
from strata.device.machine import Machine, keep_memory, start
from strata.experiments import tracking
from strata.lm.model import DTYPES, load
from strata.measure import quality
from strata.rows.shards import Activations, Contexts, check_origin, open_activations, open_contexts
from strata.run import params, resume
from strata.run.files import read_json, sha256, write_json, write_text
from strata.sae import disk
from strata.sae.knobs import Train
from strata.sae.sae import SAE
from strata.sae.training import training
from strata.sae.training.fit import Fitted
from strata.tuning.read import taken
from strata.verdict import shortfall
from strata.verdict.targets import CHECKPOINT, settled


@launch.several
def main(
    activations: str, tokens: str, lm: str, tuned: str, override: str, target: str, report: str, curve: str
) -> None:
    """ACTIVATIONS of a layer, their TOKENS, the LM, knobs TUNED and OVERRIDE -> the SAE in TARGET, REPORT, CURVE.

    Example: dvc repro train@9
    """
    rows, contexts = open_activations(Path(activations)), open_contexts(Path(tokens))
    model = read.lm_meta(Path(lm))
    check_origin(rows, contexts, read.model_facts(model))

    # The knobs: the section, the values of it that tune found, and what by_layer says of this layer.
    section, size = params.load("train", dict), auto.size_of(rows.meta)
    best_values = taken(Path(tuned), training.knobs_of(section, {}, {}, rows.layer, size).from_tune)
    layer_values = read_json(Path(override))
    knobs = training.knobs_of(section, best_values, layer_values, rows.layer, size)

    # Refuse what cannot work before the processes meet, and before the training.
    launch.share(knobs.micro_batches, "train.micro_batches")
    quality.check_held_out(rows, "test")
    targets, seed = settled(params.load("targets", dict), size.kind, knobs.k), params.load("seed", int)

    machine = params.load("machine", Machine)
    device = start(machine)
    keep_memory()

    def write(fitted: Fitted, untrained: SAE, knobs: Train, given: dict[str, Any] | None) -> None:
        """Judge the best SAE, and write all checkpoints, the curve and the report."""
        result, metadata, frequency = _judged(fitted.best, untrained, rows, contexts, Path(lm), knobs, given, device)
        result["best"] = {"step": fitted.best_step, "score": fitted.best_score} if fitted.history else None

        for name, sae in fitted.saes.items():
            is_best = name == "best"
            folder = Path(target) if is_best else Path(target) / name
            disk.save(folder, sae, metadata, frequency if is_best else None)

        write_text(Path(curve), judge.history_csv(fitted.history))
        hashes = {"weights": sha256(Path(target) / disk.WEIGHTS), "curve": sha256(Path(curve))}
        write_json(Path(report), {**result, **hashes})
        if worse := shortfall.of_layer(result, fitted.history):
            sys.stderr.write(shortfall.red(f"train: layer {rows.layer}: {worse}\n"))

    if launch.rank() == 0 and knobs.from_ is None:
        auto.tell(f"train {rows.layer}", {**section, **best_values, **layer_values}, knobs.model_dump(), size)

    # An imported SAE is judged, not trained, and that takes one process.
    if knobs.from_ is not None:
        if launch.rank() == 0:
            fitted, untrained, described, given = imported.take(knobs.from_, rows, knobs, seed, device)
            write(fitted, untrained, described, given)
        return

    # Whatever the result depends on. Unfinished work with the same facts is continued.
    facts = {
        "activations": rows.meta,
        "train": knobs.model_dump(),
        "targets": {name: bound.model_dump() for name, bound in targets.bounds.items() if name in CHECKPOINT},
        "seed": seed,
        "machine": [device.type, machine.threads],
    }
    live = tracking.live(f"train@{rows.layer}", {"train": knobs.model_dump(), "layer": rows.layer, "seed": seed})
    with launch.shared(resume.scratch(f"train-{rows.layer}", facts)) as work:
        with nullcontext(lambda step, values: None) if launch.rank() else live as watch:
            fitted, untrained = training.train(rows, knobs, targets, seed, watch, work, machine.save_every, device)
        if launch.rank() == 0:
            write(fitted, untrained, knobs, None)


def _judged(
    sae: SAE,
    untrained: SAE,
    rows: Activations,
    contexts: Contexts,
    lm: Path,
    knobs: Train,
    given: dict[str, Any] | None,
    device: torch.device,
) -> tuple[dict[str, Any], dict[str, Any], torch.Tensor]:
    """Open the language model, if there is one, and measure the SAE on held-out text.

    Returns the report, the metadata for `cfg.json`, and the share of rows on which each latent is active, (latent,).
    """
    source, options = read.lm_path(lm)
    speechless = read.speechless(read.lm_meta(lm))
    model = None if speechless else load(source, DTYPES[rows.meta["forward"]], device, **options)
    result, frequency = judge.measure(sae, untrained, rows, contexts, model, knobs)
    return result, judge.metadata(rows, contexts, knobs, result["test"], given), frequency
