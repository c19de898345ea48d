"""Stage train@L: train one layer's SAE, write it, and judge it on held-out text."""

import sys
from contextlib import ExitStack, nullcontext
from pathlib import Path

from stages.train import imported, judge, origin
from stages.train.read import history_csv
from stages.train.settings import of_layer
from strata.corpus import read
from strata.device import launch
from strata.device.machine import Machine, keep_memory, start
from strata.experiments import tracking
from strata.rows.batches import check_held_out
from strata.rows.shards import open_layer
from strata.run import params, resume
from strata.run.files import sha256, write_json, write_text
from strata.sae import disk
from strata.training import training
from strata.verdict import shortfall
from strata.verdict.targets import CHECKPOINT, settled


@launch.several
def main(
    activations: str, tokens: str, lm: str, tuned: str, override: str, target: str, report: str, curve: str
) -> None:
    """ACTIVATIONS of a layer, their TOKENS, the LM, knobs TUNED and OVERRIDE -> the SAE in TARGET, REPORT, CURVE.

    Example: dvc repro train@9
    """
    rows, contexts = open_layer(Path(activations), Path(tokens), read.model_facts(read.lm_meta(Path(lm))))
    layer, size = rows.layer, rows.size
    leads = launch.rank() == 0  # only this process says something, judges and writes
    settings = of_layer(layer, size, Path(tuned), Path(override))
    knobs = settings.knobs

    # Refuse before the training what would fail in it or after it.
    launch.share(knobs.micro_batches, "train.micro_batches")
    check_held_out(rows, "test")

    targets, seed = settled(params.load("targets", dict), size.kind, knobs.k), params.load("seed", int)
    machine = params.load("machine", Machine)
    device = start(machine)
    keep_memory()

    inputs = {  # unfinished work of other inputs is not used
        "activations": rows.meta,
        "train": knobs.model_dump(),
        "targets": {name: bound.model_dump() for name, bound in targets.bounds.items() if name in CHECKPOINT},
        "seed": seed,
        "machine": [device.type, machine.threads],
    }
    with ExitStack() as unfinished:
        if knobs.from_ is None:
            if leads:
                settings.tell(layer, size)
            given = None
            work = unfinished.enter_context(launch.shared(resume.scratch(f"train-{layer}", inputs)))
            live = tracking.live(f"train@{layer}", {"train": knobs.model_dump(), "layer": layer, "seed": seed})
            with nullcontext(lambda step, values: None) if not leads else live as watch:
                fitted = training.train(rows, knobs, targets, seed, watch, work, machine.save_every, device)
        elif leads:
            fitted, knobs, given = imported.take(knobs.from_, rows, knobs, seed, device)
        if not leads:
            return

        # The best checkpoint is the folder itself; the others stand in it by their names.
        metadata = origin.metadata(rows, contexts, knobs, fitted.best_l0, given)
        for checkpoint, sae in fitted.saes.items():
            disk.save(Path(target) if checkpoint == "best" else Path(target) / checkpoint, sae, metadata)

        model = judge.speaking(Path(lm), rows.meta["forward"], device)
        result, firing_rate = judge.measure(fitted, rows, contexts, model, knobs)
        disk.save_density(Path(target), firing_rate)
        write_text(Path(curve), history_csv(fitted.history))
        hashes = {"weights": sha256(Path(target) / disk.WEIGHTS), "curve": sha256(Path(curve))}
        write_json(Path(report), {**result, **hashes})

    if worse := shortfall.of_layer(result, fitted.history):
        sys.stderr.write(shortfall.red(f"train: layer {layer}: {worse}\n"))
