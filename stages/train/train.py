"""Stage train@L: one layer's SAE, judged on held-out text."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from stages.train import imported
from stages.train import judge as room
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
    section, size = params.load("train", dict), auto.size_of(rows.meta)
    best = taken(Path(tuned), training.knobs_of(section, {}, {}, rows.layer, size).from_tune)
    own = read_json(Path(override))
    knobs = training.knobs_of(section, best, own, rows.layer, size)
    launch.share(knobs.micro_batches, "train.micro_batches")  # refused here, before the processes meet
    quality.check_held_out(rows, "test")  # and not after the training
    targets, seed = settled(params.load("targets", dict), size.kind, knobs.k), params.load("seed", int)
    machine = params.load("machine", Machine)
    device = start(machine)
    keep_memory()

    def write(fitted: Fitted, untrained: SAE, knobs: Train, given: dict[str, Any] | None) -> None:
        found, metadata, frequency = _judged(fitted.best, untrained, rows, contexts, Path(lm), knobs, given, device)
        found["best"] = {"step": fitted.best_step, "score": fitted.best_score} if fitted.history else None
        for name, sae in fitted.saes.items():
            best = name == "best"
            folder = Path(target) if best else Path(target) / name
            disk.save(folder, sae, metadata, frequency if best else None)
        write_text(Path(curve), room.history_csv(fitted.history))
        hashes = {"weights": sha256(Path(target) / disk.WEIGHTS), "curve": sha256(Path(curve))}
        write_json(Path(report), {**found, **hashes})
        if worse := shortfall.of_layer(found, fitted.history):
            sys.stderr.write(shortfall.red(f"train: layer {rows.layer}: {worse}\n"))

    if launch.rank() == 0 and knobs.from_ is None:
        auto.tell(f"train {rows.layer}", {**section, **best, **own}, knobs.model_dump(), size)
    if knobs.from_ is not None:
        if launch.rank() == 0:
            write(*imported.take(knobs.from_, rows, knobs, seed, device))
        return

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
    """What the report and `cfg.json` say of the SAE, and how often each latent is active."""
    source, options = read.lm_path(lm)
    speechless = read.speechless(read.lm_meta(lm))
    model = None if speechless else load(source, DTYPES[rows.meta["forward"]], device, **options)
    found, frequency = room.measure(sae, untrained, rows, contexts, model, knobs)
    return found, room.metadata(rows, contexts, knobs, found["test"], given), frequency
