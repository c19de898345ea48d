"""Other recipes on the rows of a finished run, judged by its tasks: would another SAE have been the better probe?

Each variant is trained with the run's own knobs but for those that it names, on the same rows with the same seed, and
so are its twins, where they are asked for. All are probed by the tasks of the run, and stand beside the run's own SAEs
and twins, and beside the dictionary of latents that come again. A variant may name several knobs of `train`.

    python -m benchmarks.variants 9 /tmp/variants k=32 rule=matryoshka
"""

import argparse
import hashlib
import json
import re
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.pieces import say
from strata.device.machine import CPU, Machine, start
from strata.evaluation import tasks as judging
from strata.evaluation.intervals import drawn_means, resampled
from strata.measure import quality
from strata.rows.shards import Activations, open_activations
from strata.run import params
from strata.run.door import BadInput, run
from strata.run.files import read_json
from strata.sae import disk
from strata.sae.sae import SAE
from strata.tasks import read as task_files
from strata.tasks.knobs import Tasks
from strata.training import training
from strata.training.knobs import knobs_of
from strata.tuning.read import taken
from strata.twins.twins import train_twin
from strata.verdict.targets import Targets, Twin

SHOWN = ("1", "5")  # numbers of latents of which margins are shown


class Settings(NamedTuple):
    """How the run trained its SAE: its ``section`` train, over it what tune found, over that ``by_layer``; its seed."""

    section: dict[str, Any]
    tuned: dict[str, Any]
    by_layer: dict[str, Any]
    seed: int


def named(word: str) -> dict[str, Any]:
    """Read the knobs of a variant from words such as `k=32,rule=matryoshka`."""
    pairs = [part.partition("=") for part in re.split(r",(?![^\[]*\])", word)]
    if not all(equals for _, equals, _ in pairs):
        raise BadInput(f"{word} is no variant: it should be knobs such as k=32,rule=matryoshka")
    return params.parse_yaml("\n".join(f"{key}: {value}" for key, _, value in pairs), Path(word))


def trained(
    change: dict[str, Any], twin: Twin | None, activations: Activations, settings: Settings, work: Path
) -> tuple[SAE, dict[str, Any]]:
    """Train the run's SAE, or its ``twin``, with some knobs changed, unless it lies in ``work`` from before.

    ``settings``: how the run trained its own. Returns it with what it cost, and how well it reconstructs the test rows.
    """
    layer, size, targets, seed = activations.layer, activations.size, params.load("targets", Targets), settings.seed
    knobs = knobs_of(settings.section, settings.tuned, {**settings.by_layer, **change}, layer, size)
    folder = work / digest(knobs.model_dump(), targets.model_dump(), seed, twin, activations.meta)
    if not (folder / disk.CONFIG).exists():
        began = time.perf_counter()
        if twin is None:
            fitted = training.train(activations, knobs, targets, seed)
        else:
            fitted = train_twin(twin, activations, knobs, targets, seed, None, 60.0, CPU)
        disk.save(folder, fitted.best, {"seconds": round(time.perf_counter() - began)})

    sae, config = disk.load(folder)
    blocks = activations.blocks(*activations.split("test"))
    metrics = quality.reconstruction(sae.reconstruct, blocks, activations.scale, activations.median_norm)
    return sae, {"seconds": config["metadata"]["seconds"], **{name: metrics[name] for name in ("fvu_inlier", "l0")}}


def digest(*facts: Any) -> str:
    """Return what stands for ``facts`` in the name of a folder."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def main(*words: str) -> None:
    """Print a JSON line for each dictionary: its knobs, its error, and its AUC by pooling and number of latents."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.variants", description=main.__doc__)
    parser.add_argument("layer", type=int)
    parser.add_argument("work", type=Path, help="a folder that keeps what is trained and probed")
    parser.add_argument("variants", nargs="*", help="knobs of train, such as k=32,rule=matryoshka")
    parser.add_argument("--twins", nargs="*", default=[], choices=("frozen_decoder", "frozen_encoder"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args(words)

    start(Machine(device="cpu", threads=given.threads, save_every=60))
    layer = str(given.layer)
    activations = open_activations(given.data / "activations" / layer)
    rows = task_files.open_rows(given.data / "tasks" / "activations" / layer)
    if rows is None:
        raise BadInput(f"{given.data} has no tasks: its run had none")
    knobs = params.check(params.load("evaluate", dict)["tasks"], Tasks, "params.yaml: evaluate.tasks")
    knobs = knobs.model_copy(update={"regimes": ["normal"]})

    section: dict[str, Any] = params.load("train", dict)
    by_layer = read_json(given.data / "layers" / f"{layer}.json")
    from_tune = knobs_of(section, {}, {}, given.layer, activations.size).from_tune
    tuned = taken(Path("reports/tune/best.yaml"), from_tune)
    settings = Settings(section, tuned, by_layer, params.load("seed", int))

    # The dictionary of latents that come again, where the run made one, and the variants.
    dictionaries, facts = {"sae": disk.load(given.data / "sae" / layer)[0]}, dict[str, dict[str, Any]]()
    if (pooled := given.data / "stability" / layer / "pooled").is_dir():
        dictionaries["pooled"] = disk.load(pooled)[0]
    for word in given.variants:
        for twin in (None, *given.twins):
            name = word if twin is None else f"{word} {twin}"
            sae, known = trained(named(word), twin, activations, settings, given.work / layer)
            say(json.dumps({"name": name, **known}))
            name = f"{name} {disk.decoder_hash(sae)}"  # what was probed lies in a file of this name
            dictionaries[name], facts[name] = sae, known

    # One dictionary is probed after another, each once: what was probed before lies in a folder for the same prompts.
    tasks = task_files.tasks(given.data / "tasks" / "prompts")
    of_run = [disk.decoder_hash(dictionaries[name]) for name in ("sae", "pooled") if name in dictionaries]
    work = given.work / layer / digest(rows.meta, knobs.model_dump(), settings.seed, of_run)
    found = judging.judge(judging.Judged(rows, tasks, dictionaries), knobs, settings.seed, given.threads, work)

    # The twins and the trainings with other seeds were probed by the run, on the same splits.
    by_run = read_json(Path("reports/evaluate") / f"{layer}.json")["tasks"]["by_task"]
    for pooling in knobs.pooling:
        for name in dictionaries:
            new, others = (auc_of(found["by_task"], pooling, name), auc_of(by_run, pooling, None))
            margins = {
                f"above {other}": {k: margin(new[k], values[k]) for k in SHOWN}
                for other, values in others.items()
                if other not in (name, "shuffled")
            }
            aucs = {k: round(float(np.mean(new[k])), 4) for k in new}
            print(json.dumps({"pooling": pooling, "name": name, **facts.get(name, {}), **aucs, **margins}))


def auc_of(rows: list[dict[str, Any]], pooling: str, name: str | None) -> dict[str, Any]:
    """Return k -> the AUC in every task and split of one dictionary; or of all by name, where ``name`` is None."""
    normal = [row["auc"][pooling] for row in rows if row["regime"] == "normal"]
    if name is None:
        return {one: auc_of(rows, pooling, one) for one in normal[0]}
    return {k: np.array([row[name][k] for row in normal]) for k in normal[0][name]}


def margin(one: Any, other: Any) -> str:
    """Write by how much one is above the other, with the interval of a bootstrap over tasks."""
    difference = (one - other)[:, None]
    drawn = drawn_means(difference, np.random.default_rng(0))[:, 0]
    of = resampled(float(difference.mean()), drawn)
    return f"{of['value']:.3f} ({of['low']:.3f} to {of['high']:.3f})"


if __name__ == "__main__":
    run(main, options=True)
