"""Other recipes on the rows of a finished run, judged by its tasks: would another SAE have been the better probe?

Each variant is trained with the run's own knobs but for those that it names, on the same rows with the same seed, and
so are its twins, where they are asked for. All are probed by the tasks of the run, beside its own SAE and its own
twins. A variant may name several knobs of `train`, and `cut`: to read no more than the first n latents, which of a
matryoshka are its coarsest.

    python -m benchmarks.variants 9 /tmp/variants k=32 rule=matryoshka rule=matryoshka,cut=512
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.pieces import say
from strata.device.machine import Machine, start
from strata.evaluation import tasks as judging
from strata.measure import quality
from strata.replication.read import replicas
from strata.rows.shards import Activations, open_activations
from strata.run import params
from strata.run.door import BadInput, run
from strata.sae import disk
from strata.sae.sae import SAE
from strata.tasks import read as task_files
from strata.tasks.knobs import Tasks
from strata.training import training
from strata.training.knobs import Train, knobs_of
from strata.twins.load import comparable
from strata.twins.twins import train_twin
from strata.verdict.targets import Targets


def named(word: str) -> dict[str, Any]:
    """Read the knobs of a variant from words such as `k=32,rule=matryoshka`."""
    pairs = [part.partition("=") for part in word.split(",")]
    if not all(equals for _, equals, _ in pairs):
        raise BadInput(f"{word} is no variant: it should be knobs such as k=32,rule=matryoshka")
    return params.parse_yaml("\n".join(f"{key}: {value}" for key, _, value in pairs), Path(word))


def only_first(sae: SAE, latents: int) -> SAE:
    """Keep the first ``latents`` of an SAE whose codes do not depend on the others."""
    if sae.threshold is None:
        raise BadInput("cut needs an SAE with thresholds: of topk each latent depends on all others")
    return SAE(
        encoder=sae.encoder[:latents].contiguous(),
        b_enc=sae.b_enc[:latents].contiguous(),
        decoder=sae.decoder[:latents].contiguous(),
        b_dec=sae.b_dec,
        k=None,
        threshold=sae.threshold[:latents].contiguous(),
    )


def trained(
    word: str, twin: Any, activations: Activations, targets: Targets, seed: int, folder: Path
) -> tuple[SAE, dict[str, Any]]:
    """Train a variant, or its ``twin``, unless ``folder`` holds it from before; return it with what it cost."""
    change = named(word)
    cut = change.pop("cut", None)
    folder /= " ".join([*(f"{key}={change[key]}" for key in sorted(change)), *([twin] if twin else [])])
    if not (folder / disk.CONFIG).exists():
        section: dict[str, Any] = params.load("train", dict)
        knobs: Train = knobs_of({**section, "from_tune": []}, {}, change, activations.layer, activations.size)
        began = time.perf_counter()
        if twin is None:
            fitted = training.train(activations, knobs, targets, seed)
        else:
            fitted = train_twin(twin, activations, knobs, targets, seed, None, 60.0, torch.device("cpu"))
        disk.save(folder, fitted.best, {"seconds": time.perf_counter() - began})
    sae, config = disk.load(folder)

    first, end = activations.split("test")
    metrics = quality.reconstruction(
        sae.reconstruct, activations.blocks(first, end), activations.scale, activations.median_norm
    )
    facts = {"seconds": round(config["metadata"]["seconds"]), **{key: metrics[key] for key in ("fvu_inlier", "l0")}}
    return (sae if cut is None else only_first(sae, cut)), facts


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
    layer, seed = str(given.layer), params.load("seed", int)
    activations = open_activations(given.data / "activations" / layer)
    rows = task_files.open_rows(given.data / "tasks" / "activations" / layer)
    if rows is None:
        raise BadInput(f"{given.data} has no tasks: its run had none")
    tasks = task_files.tasks(given.data / "tasks" / "prompts")
    knobs = params.check(params.load("evaluate", dict)["tasks"], Tasks, "params.yaml: evaluate.tasks")
    targets = params.load("targets", Targets)

    dictionaries = {"sae": disk.load(given.data / "sae" / layer)[0], **comparable(given.data / "controls" / layer)}
    facts: dict[str, dict[str, Any]] = {}
    for word in given.variants:
        for twin in (None, *given.twins):
            name = word if twin is None else f"{word} {twin}"
            dictionaries[name], facts[name] = trained(
                word, twin, activations, targets, seed, given.work / "saes" / layer
            )
            say(json.dumps({"name": name, **facts[name]}))
    others = {f"seed {n}": disk.load(path)[0] for n, path in replicas(given.data / "stability" / layer).items()}

    judged = judging.Judged(rows, tasks, dictionaries | others)
    work = given.work / f"probes-{layer}"
    work.mkdir(parents=True, exist_ok=True)
    found = judging.judge(judged, knobs, seed, given.threads, work)
    for pooling in knobs.pooling:
        summary = found["normal"][pooling]
        for name, measures in {"sae": summary["sae"], **summary["controls"]}.items():
            aucs = {k: round(measures["auc"][k]["value"], 4) for k in measures["auc"]}
            print(json.dumps({"layer": given.layer, "pooling": pooling, "name": name, **facts.get(name, {}), **aucs}))


if __name__ == "__main__":
    run(main)
