"""Stage train@L: train one layer's SAE, and judge it on held-out text."""

import sys
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor

from stages.train import imported, judge
from stages.train.read import history_csv
from stages.train.settings import of_layer
from strata import auto
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
from strata.training.fit import Fitted
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
    layer, size = rows.layer, auto.size_of(rows.meta)
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

        model = judge.speaking(Path(lm), rows.meta["forward"], device)
        result, firing_rate = judge.measure(fitted, rows, contexts, model, knobs)
        metadata = judge.metadata(rows, contexts, knobs, result["test"], given)
        _write(fitted, result, firing_rate, metadata, Path(target), Path(report), Path(curve))


def _write(
    fitted: Fitted,
    result: dict[str, Any],
    firing_rate: Tensor,
    metadata: dict[str, Any],
    target: Path,
    report: Path,
    curve: Path,
) -> None:
    """Write every checkpoint to ``target``, then the curve and the report; say on stderr where the SAE falls short.

    ``result`` and ``firing_rate``: what :func:`stages.train.judge.measure` returns. ``metadata``: for the `cfg.json`.
    """
    # The best checkpoint is the folder itself; the others stand in it by their names.
    for checkpoint, sae in fitted.saes.items():
        best = checkpoint == "best"
        disk.save(target if best else target / checkpoint, sae, metadata, firing_rate if best else None)
    write_text(curve, history_csv(fitted.history))

    result["best"] = {"step": fitted.best_step, "score": fitted.best_score} if fitted.history else None
    write_json(report, {**result, "weights": sha256(target / disk.WEIGHTS), "curve": sha256(curve)})

    if worse := shortfall.of_layer(result, fitted.history):
        sys.stderr.write(shortfall.red(f"train: layer {result['layer']}: {worse}\n"))
