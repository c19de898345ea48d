"""What extraction costs: tokens/s against the bare forward pass, and peak memory by number of tokens."""

import argparse
import json
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from strata.corpus import read
from strata.corpus.read import SPLITS
from strata.device.machine import Machine, start
from strata.extraction import extract as room
from strata.lm.model import DTYPES, LanguageModel, check_layers, forward_until, load
from strata.rows.shards import Contexts
from strata.run import params
from strata.run.door import BadInput, run

BATCHES = 2  # forward passes in a piece
STATUS = Path("/proc/self/status")


class Extraction:
    """The extract stage on params.yaml's knobs, but for ``tokens`` rows and into a folder of the caller's."""

    def __init__(self, lm: Path, corpus: Path, tokens: int) -> None:
        model, self.text = read.lm_meta(lm), read.corpus_meta(corpus)
        device = start(params.load("machine", Machine))
        self.corpus, self.layers = corpus, params.load("layers", list[int])
        knobs = params.load("extract", room.Extract)
        self.knobs = params.check({**knobs.model_dump(), "tokens": tokens}, room.Extract, "--tokens")
        check_layers(self.layers, model["blocks"])
        self.facts = {"model": read.model_facts(model), "corpus": self.text["sha256"], "hook": self.knobs.hook}
        source, options = read.lm_path(lm)
        self.lm: LanguageModel = load(source, DTYPES[self.knobs.dtype], device, **options)
        self.reading = room.language(self.lm, self.layers, self.knobs)

    def contexts(self, folder: Path) -> Contexts:
        """Tokenise, as the stage does before its pass."""
        documents = {split: read.documents(self.corpus, split) for split in SPLITS}
        counts = {split: self.text["splits"][split] for split in SPLITS}
        return Contexts(folder, self.reading.write(documents, counts, folder))

    def write(self, contexts: Contexts) -> None:
        """The whole pass: shards, hashes and statistics of every layer."""
        with TemporaryDirectory() as folder:
            room.write_shards(self.reading, contexts, self.layers, self.knobs.shard_rows, self.facts, Path(folder))

    def bare(self, contexts: Contexts) -> None:
        """The forward pass alone: the same contexts in the same batches, up to the same block."""
        tokens, _ = contexts.read(0, contexts.meta["contexts"][SPLITS[-1]][1])
        for batch in torch.from_numpy(tokens).split(self.knobs.batch_size):
            with torch.inference_mode():
                forward_until(self.lm, max(self.layers), tokens=batch.to(self.lm.device, torch.long))
        if self.lm.device.type == "cuda":
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Piece(Contexts):
    """A few contexts held in memory, all of them for training."""

    tokens: np.ndarray
    documents: np.ndarray

    def read(self, first: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        return self.tokens[first:end], self.documents[first:end]


def pieces(contexts: Contexts, size: int) -> Iterator[Piece]:
    """Cut ``contexts`` into pieces of ``size``; what does not fill one is left out."""
    count = contexts.meta["contexts"][SPLITS[-1]][1]
    for first in range(0, count - size + 1, size):
        tokens, documents = contexts.read(first, first + size)
        rows = int((documents >= 0).sum())
        parts = {"contexts": [0, size], "splits": [0, rows]}
        meta = {key: dict.fromkeys(SPLITS, part) for key, part in parts.items()}
        yield Piece(contexts.folder, {**contexts.meta, **meta, "rows": rows}, tokens, documents)


def speed(extraction: Extraction) -> dict[str, Any]:
    """Bare and real passes take turns on one small piece after another; medians.

    Other work on a shared machine changes its speed by the second: only neighbours in time can be compared, or the
    fastest of each, which were disturbed least (all pieces have equally many positions).
    """
    wall: dict[str, list[float]] = {"bare": [], "extract": []}
    rows: list[int] = []
    with TemporaryDirectory() as folder:
        jobs = {"bare": extraction.bare, "extract": extraction.write}
        for number, piece in enumerate(
            pieces(extraction.contexts(Path(folder)), BATCHES * extraction.knobs.batch_size)
        ):
            for name, job in jobs.items():
                if number == 0:  # pays for allocations and warm-up
                    job(piece)
                before = time.perf_counter()
                job(piece)
                wall[name].append(time.perf_counter() - before)
            rows.append(piece.meta["rows"])
    if not rows:
        raise BadInput(f"--tokens {extraction.knobs.tokens} do not fill {BATCHES} batches; ask for more")
    return {
        "rows": sum(rows),
        "pieces": len(rows),
        "layers": extraction.layers,
        "dtype": extraction.knobs.dtype,
        "batch_size": extraction.knobs.batch_size,
        "threads": torch.get_num_threads(),
        "device": str(extraction.lm.device),
        "bare_tokens_per_second": float(np.median(np.divide(rows, wall["bare"]))),
        "extract_tokens_per_second": float(np.median(np.divide(rows, wall["extract"]))),
        "ratio": float(np.median(np.divide(wall["bare"], wall["extract"]))),
        "ratio_of_fastest": min(wall["bare"]) / min(wall["extract"]),
        "ratios": np.divide(wall["bare"], wall["extract"]).round(4).tolist(),
    }


@contextmanager
def watched(every: float = 0.01) -> Iterator[dict[str, int]]:
    """Fill the yielded dict with the highest RssAnon and RssFile, bytes, that a thread sees while the block runs.

    Mapped files are kept apart: the system can drop them at any time, and ru_maxrss counts them as memory.
    """
    peak, done = {"RssAnon": 0, "RssFile": 0}, threading.Event()

    def look() -> None:
        while not done.wait(every):
            for line in STATUS.read_text().splitlines():
                name, _, value = line.partition(":")
                if name in peak:
                    peak[name] = max(peak[name], int(value.split()[0]) * 1024)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def memory(lm: Path, corpus: Path, tokens: int) -> dict[str, Any]:
    """Peaks of this process, which must be fresh: load, tokenise and extract ``tokens`` rows."""
    with watched() as peak, TemporaryDirectory() as folder:
        extraction = Extraction(lm, corpus, tokens)
        loaded = dict(peak)
        contexts = extraction.contexts(Path(folder))
        extraction.write(contexts)
    return {
        "rows": contexts.meta["rows"],
        "peak_anonymous_bytes": peak["RssAnon"],
        "peak_anonymous_bytes_after_loading": loaded["RssAnon"],
        "peak_file_backed_bytes": peak["RssFile"],
        "ru_maxrss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def memory_in_fresh_processes(lm: Path, corpus: Path, tokens: Sequence[int]) -> dict[str, Any]:
    """One process for each number of tokens, so that no peak is another's."""
    found = []
    for count in tokens:
        words = ["--lm", str(lm), "--corpus", str(corpus), "--here", "--memory", str(count)]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.extraction", *words], stdout=subprocess.PIPE, check=False
        )
        if done.returncode:
            raise BadInput(f"the run over {count} tokens ended with exit code {done.returncode}")
        found.append(json.loads(done.stdout))
    return {"model_bytes": read.lm_meta(lm)["bytes"], "memory": found}


def main(*words: str) -> None:
    """Print one JSON object: the speed, or with --memory the peaks for each number of tokens given."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.extraction", description=main.__doc__)
    parser.add_argument("--lm", type=Path, default=Path("data/lm"))
    parser.add_argument("--corpus", type=Path, default=Path("data/corpus"))
    parser.add_argument("--tokens", type=int, default=16000, help="rows that each side processes")
    parser.add_argument("--memory", type=int, nargs="+", metavar="TOKENS", help="e.g. --memory 20000 200000")
    parser.add_argument("--here", action="store_true", help="measure memory in this very process (one number)")
    given = parser.parse_args(words)
    if given.memory and not STATUS.exists():
        raise BadInput(f"memory is read from {STATUS}, which this system does not have; run it on Linux")
    if given.here:
        found = memory(given.lm, given.corpus, given.memory[0])
    elif given.memory:
        found = memory_in_fresh_processes(given.lm, given.corpus, given.memory)
    else:
        found = speed(Extraction(given.lm, given.corpus, given.tokens))
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    run(main, options=True)
