"""Stage train@L: train one layer's SAE, and judge it on held-out text."""

import sys
from contextlib import nullcontext
from functools import partial
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
    check_origin(rows, contexts, read.model_facts(read.lm_meta(Path(lm))))

    # The section train, over it what it takes from tune, over that what by_layer says of this layer.
    section, size = params.load("train", dict), auto.size_of(rows.meta)
    from_tune = taken(Path(tuned), training.knobs_of(section, {}, {}, rows.layer, size).from_tune)
    of_layer = read_json(Path(override))
    knobs = training.knobs_of(section, from_tune, of_layer, rows.layer, size)

    # Refuse before the training what would fail in it or after it.
    launch.share(knobs.micro_batches, "train.micro_batches")
    quality.check_held_out(rows, "test")

    targets, seed = settled(params.load("targets", dict), size.kind, knobs.k), params.load("seed", int)
    machine = params.load("machine", Machine)
    device = start(machine)
    keep_memory()
    write = partial(
        _judge_and_write,
        rows,
        contexts,
        lm=Path(lm),
        device=device,
        target=Path(target),
        report=Path(report),
        curve=Path(curve),
    )

    if knobs.from_ is not None:
        if launch.rank() == 0:
            fitted, untrained, described, metadata = imported.take(knobs.from_, rows, knobs, seed, device)
            write(fitted, untrained, described, metadata)
        return
    if launch.rank() == 0:
        auto.tell(f"train {rows.layer}", {**section, **from_tune, **of_layer}, knobs.model_dump(), size)

    inputs = {  # unfinished work of other inputs is not used
        "activations": rows.meta,
        "train": knobs.model_dump(),
        "targets": {name: bound.model_dump() for name, bound in targets.bounds.items() if name in CHECKPOINT},
        "seed": seed,
        "machine": [device.type, machine.threads],
    }
    live = tracking.live(f"train@{rows.layer}", {"train": knobs.model_dump(), "layer": rows.layer, "seed": seed})
    with launch.shared(resume.scratch(f"train-{rows.layer}", inputs)) as work:
        with nullcontext(lambda step, values: None) if launch.rank() else live as watch:
            fitted, untrained = training.train(rows, knobs, targets, seed, watch, work, machine.save_every, device)
        if launch.rank() == 0:
            write(fitted, untrained, knobs, None)


def _judge_and_write(
    rows: Activations,
    contexts: Contexts,
    fitted: Fitted,
    untrained: SAE,
    knobs: Train,
    given: dict[str, Any] | None,
    *,
    lm: Path,
    device: torch.device,
    target: Path,
    report: Path,
    curve: Path,
) -> None:
    """Judge the best checkpoint beside its controls; write every checkpoint, the report and the curve.

    ``knobs`` say what the SAE is. ``given``: the metadata of an imported SAE; None if it was trained here.
    """
    name, options = read.lm_path(lm)
    speechless = read.speechless(read.lm_meta(lm))
    model = None if speechless else load(name, DTYPES[rows.meta["forward"]], device, **options)
    result, firing_rate = judge.measure(fitted.best, untrained, rows, contexts, model, knobs)
    result["best"] = {"step": fitted.best_step, "score": fitted.best_score} if fitted.history else None

    # The best checkpoint is the folder itself; the others stand in it by their names.
    metadata = judge.metadata(rows, contexts, knobs, result["test"], given)
    for checkpoint, sae in fitted.saes.items():
        best = checkpoint == "best"
        disk.save(target if best else target / checkpoint, sae, metadata, firing_rate if best else None)
    write_text(curve, judge.history_csv(fitted.history))
    write_json(report, {**result, "weights": sha256(target / disk.WEIGHTS), "curve": sha256(curve)})

    if worse := shortfall.of_layer(result, fitted.history):
        sys.stderr.write(shortfall.red(f"train: layer {rows.layer}: {worse}\n"))
