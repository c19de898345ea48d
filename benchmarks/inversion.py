"""How often inversion beats random search with equal model calls, and the corpus, starting from random tokens alone."""

import argparse
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from strata.corpus import read
from strata.device.machine import Machine, start
from strata.interpretation.read import Latents, chosen, open_latents
from strata.inversion import invert as room
from strata.inversion.knobs import Invert
from strata.lm.model import DTYPES, load
from strata.run import params
from strata.run.door import run
from strata.sae import disk


def sample(latents: Latents, count: int) -> list[int]:
    """``count`` latents, each of those that interpret's filters kept as likely as another; the same at every call."""
    table = latents.table("statistics", ["latent", "kept"])
    assert table is not None
    kept = [row["latent"] for row in table.to_pylist() if row["kept"]]
    return sorted(np.random.default_rng(0).permutation(kept)[:count].tolist())


def changed(knobs: Invert, given: argparse.Namespace) -> Invert:
    """The stage's knobs, with random starts alone; and longer, or without soft search, where that is asked for."""
    starts = knobs.greedy.starts.model_copy(update={"corpus": 0, "random": given.starts})
    greedy = knobs.greedy.model_copy(update={"starts": starts, "steps": given.steps, "fluency": [0.0]})
    soft = knobs.soft.model_copy(update={"starts": given.soft})
    return knobs.model_copy(update={"greedy": greedy, "soft": soft, "templates": 0, "keep_prefix": ""})


def main(*words: str) -> None:
    """Print one JSON object: what each latent came to with each seed, and the shares that beat what they should."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inversion", description=main.__doc__)
    parser.add_argument("data", type=Path, help="what the pipeline wrote: lm, sae, latents")
    parser.add_argument("--layer", type=int, default=9)
    parser.add_argument("--latents", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--starts", type=int, default=2, help="of greedy search")
    parser.add_argument("--steps", type=int, default=60, help="of greedy search")
    parser.add_argument("--soft", type=int, default=0, help="starts of soft search")
    given = parser.parse_args(words)
    knobs, device = changed(params.load("invert", Invert), given), start(params.load("machine", Machine))
    latents = open_latents(given.data / "latents" / str(given.layer))
    sae, _ = disk.load(given.data / "sae" / str(given.layer))
    name, options = read.lm_path(given.data / "lm")
    source = room.Source(load(name, DTYPES[knobs.dtype], device, **options), sae.to(device), latents)
    maxima, runs = chosen(latents, sample(latents, given.latents), [], "--latents"), []
    for seed in given.seeds:
        began = time.perf_counter()
        with TemporaryDirectory() as work:
            found = room.report(given.layer, room.invert(source, maxima, knobs, seed, Path(work)))
        runs.append({"seed": seed, "seconds": round(time.perf_counter() - began, 1), **_short(found)})
    shares = {share: float(np.mean([one[share] for one in runs])) for share in ("beats_random", "beats_corpus")}
    print(json.dumps({"layer": given.layer, "invert": knobs.model_dump(), **shares, "runs": runs}, indent=2))


def _short(found: dict[str, Any]) -> dict[str, Any]:
    columns = ("latent", "method", "calls", "activation", "random", "corpus_max", "ratio", "cross_entropy", "text")
    rows = [{name: row[name] for name in columns} for row in found["latents"]]
    return {"beats_random": found["beats_random"], "beats_corpus": found["beats_corpus"], "latents": rows}


if __name__ == "__main__":
    run(main, options=True)
