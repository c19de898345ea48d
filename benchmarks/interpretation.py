"""Seconds and peak anonymous memory of interpret over numbers of tokens.

What is stored of a layer is repeated as often as needed, each time as new documents; that costs what new text would.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks.extraction import watched
from strata.corpus import read
from strata.device.machine import Machine, start
from strata.interpretation import interpret as room
from strata.interpretation.knobs import Interpret
from strata.interpretation.vocabulary import of_tokens
from strata.lm.model import DTYPES, load
from strata.rows.shards import (
    DTYPE,
    Activations,
    Contexts,
    identity,
    mapped,
    open_activations,
    open_contexts,
    shard_name,
    writing,
)
from strata.run import params
from strata.run.door import run
from strata.run.files import need_disk, write_tensors
from strata.sae import disk


def contexts_of(stored: Contexts, documents: int, rows: int, folder: Path) -> Contexts:
    """At least ``rows`` rows of whole contexts; every repetition numbers its ``documents`` anew."""
    tokens, owners = stored.read(0, max(end for _, end in stored.meta["contexts"].values()))
    times = -(-rows // stored.meta["rows"])
    tokens = np.tile(tokens, (times, 1))
    owners = np.concatenate([np.where(owners < 0, -1, owners + documents * i) for i in range(times)])
    enough = int(np.searchsorted((owners >= 0).sum(1).cumsum(), rows)) + 1
    tokens, owners, size, files = tokens[:enough], owners[:enough], stored.meta["file_contexts"], []
    for first in range(0, enough, size):
        part = slice(first, first + size)
        files.append({"file": f"contexts-{first}.safetensors"})
        both = {"token": torch.from_numpy(tokens[part]), "document": torch.from_numpy(owners[part].astype(np.int32))}
        write_tensors(folder / files[-1]["file"], both)
    total = int((owners >= 0).sum())
    ranges = {"contexts": {"train": [0, enough]}, "splits": {"train": [0, total]}}
    return Contexts(folder, {**stored.meta, "files": files, "rows": total, **ranges})


def activations_of(stored: Activations, rows: int, folder: Path) -> Activations:
    """``rows`` rows: the stored ones, again and again."""
    size = stored.meta["shard_rows"]
    sizes = [min(size, rows - first) for first in range(0, rows, size)]
    shards = [{"file": shard_name(number), "rows": rows} for number, rows in enumerate(sizes)]
    meta: dict[str, Any] = {**stored.meta, "rows": rows, "shards": shards, "splits": {"train": [0, rows]}}
    need_disk(folder, rows * stored.width * DTYPE.itemsize, "the benchmark")
    at = 0
    for number, left in enumerate(sizes):
        with writing(folder / shard_name(number), left, stored.width, identity(meta, number)) as shard:
            while left:
                first = at % stored.rows
                block = stored.read(first, min(first + 4096, stored.rows, first + left))
                shard.append(block.contiguous())
                at, left = at + len(block), left - len(block)
    return mapped(folder, meta)


def one(data: Path, layer: int, rows: int) -> dict[str, Any]:
    """Interpret ``rows`` rows in this process, which must be fresh."""
    device = start(params.load("machine", Machine))
    knobs = params.load("interpret", Interpret)

    # What the pipeline left of the layer.
    stored = open_activations(data / "activations" / str(layer))
    sae, _ = disk.load(data / "sae" / str(layer))
    source, options = read.lm_path(data / "lm")
    lm = load(source, DTYPES[stored.meta["forward"]], device, **options)
    titles, labels = read.titles(data / "corpus")

    # The same rows as often as it takes, and one pass over them.
    with TemporaryDirectory(dir=".") as name:
        folder = Path(name)
        for part in ("activations", "tokens", "work"):
            (folder / part).mkdir()
        contexts = contexts_of(open_contexts(data / "activations" / "tokens"), len(titles), rows, folder / "tokens")
        activations = activations_of(stored, contexts.meta["rows"], folder / "activations")
        times = -(-rows // stored.rows)
        from_ = room.Source(activations, contexts, titles * times, labels * times, of_tokens(lm))
        with watched() as peak:
            time.sleep(0.1)
            began, before = time.perf_counter(), peak["RssAnon"]
            found = room.interpret(sae, from_, knobs, 0, folder / "latents", folder / "work", device)
            seconds = time.perf_counter() - began

        size = sum(path.stat().st_size for path in (folder / "latents").rglob("*") if path.is_file())
    return {
        "rows": activations.rows,
        "documents": found["documents"],
        "latents": sae.latents,
        "seconds": round(seconds, 1),
        "peak_anonymous_bytes": peak["RssAnon"],
        "anonymous_bytes_before": before,
        "peak_file_backed_bytes": peak["RssFile"],
        "written_bytes": size,
    }


def main(*words: str) -> None:
    """Print one JSON object, a line of figures for each number of ``--rows``, each from a process of its own."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.interpretation", description=main.__doc__)
    parser.add_argument("data", type=Path, help="what the pipeline wrote: lm, corpus, activations, sae")
    parser.add_argument("--layer", type=int, default=9)
    parser.add_argument("--rows", type=int, nargs="+", default=[50_000, 100_000, 170_000, 300_000, 500_000])
    given = parser.parse_args(words)
    if len(given.rows) == 1:
        print(json.dumps(one(given.data, given.layer, given.rows[0])))
        return
    found = []
    for rows in given.rows:
        command = [sys.executable, "-m", "benchmarks.interpretation", str(given.data)]
        command += ["--layer", str(given.layer), "--rows", str(rows)]
        found.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
    print(json.dumps({"layer": given.layer, "runs": found}, indent=2))


if __name__ == "__main__":
    run(main, options=True)
