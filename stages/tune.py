"""Stage tune: search the knobs of train in short trainings on one layer."""

from pathlib import Path

from strata import auto
from strata.device.machine import Machine, keep_memory, start
from strata.experiments import tracking
from strata.rows.shards import open_activations
from strata.run import params, resume
from strata.tuning import tune as tuning
from strata.tuning import write
from strata.tuning.knobs import Tune
from strata.verdict.targets import CHECKPOINT, settled


def main(activations: str, target: str) -> None:
    """ACTIVATIONS of the last of the layers -> every trial and the best knobs in TARGET.

    Example: dvc repro tune
    """
    knobs = params.load("tune", Tune)
    if not knobs.run:
        write.skip(Path(target))
        return

    rows, section = open_activations(Path(activations)), params.load("train", dict)
    size = rows.size
    train = auto.train(section, size)
    auto.tell("tune", section, train, size)
    targets = settled(params.load("targets", dict), size.kind, train["k"])

    seed, machine = params.load("seed", int), params.load("machine", Machine)
    device = start(machine)
    keep_memory()
    inputs = {  # unfinished work of other inputs is not used
        "activations": rows.meta,
        "train": train,
        "tune": {**knobs.model_dump(), "calls": None},  # a search with more calls continues one with fewer
        "targets": {name: bound.model_dump() for name, bound in targets.bounds.items() if name in CHECKPOINT},
        "seed": seed,
        "machine": [device.type, machine.threads],
    }

    live = tracking.live("tune", {**knobs.model_dump(), "seed": seed})
    with resume.scratch("tune", inputs) as work, live as watch:
        trials, search = tuning.tune(rows, knobs, train, targets, seed, watch, work, device)
        write.write(Path(target), trials, search)
