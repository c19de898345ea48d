"""Peak anonymous memory of a training on many gigabytes of shards: it must not depend on their number."""

import argparse
import json
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.extraction import watched
from strata.device.machine import Machine, keep_memory, start
from strata.rows.batches import Shuffled
from strata.rows.shards import DTYPE, Activations, identity, mapped, shard_name, writing
from strata.run import params
from strata.run.door import run
from strata.run.files import need_disk
from strata.training.autoencoder import Autoencoder, Scale
from strata.training.fit import Judgement, fit
from strata.training.knobs import Train
from strata.training.named import make_rule
from strata.training.trainer import Trainer

SHARD = 65536  # rows


def repeated(width: int, size: int, folder: Path) -> Activations:
    """``size`` bytes of Gaussian rows in shards; every shard holds the same ones, which memory cannot tell."""
    number = size // (SHARD * width * DTYPE.itemsize)
    rows = torch.randn(SHARD, width, generator=torch.Generator().manual_seed(0)).to(DTYPE)
    shards = [{"file": shard_name(i), "rows": SHARD} for i in range(number)]
    meta: dict[str, Any] = {
        "model": {"fingerprint": "none"}, "hook": "none", "dtype": "bfloat16", "layer": 0, "width": width,
        "rows": number * SHARD,
        "shard_rows": SHARD, "shards": shards, "splits": {"train": [0, number * SHARD]}, "scale": 1.0,
        "median_norm": width**0.5, "mean": [0.0] * width,
    }  # fmt: skip
    need_disk(folder, number * SHARD * width * DTYPE.itemsize, "--gigabytes")
    for i in range(number):
        with writing(folder / shard_name(i), SHARD, width, identity(meta, i)) as shard:
            shard.append(rows)
    return mapped(folder, meta)


def main(*words: str) -> None:
    """Print one JSON object: peaks of ``--steps`` steps in chunks drawn from all shards, states saved on the way."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_memory", description=main.__doc__)
    parser.add_argument("--gigabytes", type=float, default=20.0)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--steps", type=int, default=1200)
    given = parser.parse_args(words)
    start(params.load("machine", Machine))
    keep_memory()  # as the stage does
    knobs = params.load("train", Train).model_copy(update={"epochs": 1})
    with TemporaryDirectory(dir=".") as folder:
        activations = repeated(given.width, int(given.gigabytes * 1e9), Path(folder))
        work = Path(folder) / "work"
        shuffled = Shuffled(activations, 0, activations.rows, knobs.batch_size, knobs.window_rows, 0)
        scale = Scale.of(activations)
        model = Autoencoder(given.width, knobs.latents, torch.Generator().manual_seed(0))
        trainer = Trainer(model, make_rule(knobs), scale, knobs, given.steps, 0)
        bytes_of_parameters = sum(p.numel() * p.element_size() for p in model.parameters())
        with watched() as peak:
            fit(
                lambda step: islice(map(scale.apply, shuffled.endless(step)), given.steps),
                trainer, lambda sae, dead: Judgement(1.0, 0.0, 1.0), work=work, save_every=10.0,
            )  # fmt: skip
    found = {
        "rows": activations.rows,
        "shard_bytes": activations.rows * given.width * DTYPE.itemsize,
        "latents": knobs.latents,
        "steps": given.steps,
        "rows_read": given.steps * knobs.batch_size,
        "parameter_bytes": bytes_of_parameters,
        "peak_anonymous_bytes": peak["RssAnon"],
        "peak_file_backed_bytes": peak["RssFile"],
        "allowed_bytes": 3_000_000_000 + 5 * bytes_of_parameters,
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    run(main, options=True)
