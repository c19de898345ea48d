"""Vectors out of SQLite: rows a second and memory of fetch, beside a bare loop over the cursor.

`python -m benchmarks.database --rows 1000000` makes a database of random vectors as BLOBs in a temporary folder, reads
it with Python's own cursor and numpy (parsing each vector, keeping none), then as fetch does, which also shuffles,
splits and writes, and prints one JSON object.
"""

import argparse
import json
import sqlite3
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil

from benchmarks.training import machine
from stages import params
from stages.door import run
from stages.fetch import corpus

WIDTH, BLOCK = 384, 10_000


def make(path: Path, rows: int) -> None:
    """``rows`` random vectors, an id and a text each."""
    random = np.random.default_rng(0)
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE items (id INTEGER PRIMARY KEY, vector BLOB, text TEXT)")
        for first in range(0, rows, BLOCK):
            vectors = random.standard_normal((min(BLOCK, rows - first), WIDTH), np.float32)
            found = ((first + i, vector.tobytes(), f"text {first + i}") for i, vector in enumerate(vectors))
            connection.executemany("INSERT INTO items VALUES (?, ?, ?)", found)
    connection.close()


def bare(path: Path) -> int:
    """Rows that a plain loop reads and parses."""
    connection, rows = sqlite3.connect(path), 0
    for _, blob, _ in connection.execute("SELECT id, vector, text FROM items"):
        np.frombuffer(blob, "<f4")
        rows += 1
    connection.close()
    return rows


def fetched(path: Path, folder: Path) -> int:
    """Rows that fetch takes in."""
    source = {"source": str(path), "query": "SELECT id, vector, text FROM items", "text": "text"}
    plain = {"documents": None, "min_chars": 0, "max_chars": None, "near_duplicates": None, "balance": None}
    shares = {"max_bad_rows": 0, "validation": 0.1, "test": 0.1, "stratify": False}
    return corpus.build(params.check({"sources": [source], **plain, **shares}, corpus.Corpus, "corpus"), 0, folder)[
        "documents"
    ]


def anonymous() -> int:
    """RssAnon of this process, in bytes: mapped pages do not count."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")))


def main(*words: str) -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.database", description=main.__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    given = parser.parse_args(words)
    with TemporaryDirectory() as name:
        path, done = Path(name) / "items.sqlite", threading.Event()
        make(path, given.rows)
        first = time.perf_counter()
        assert bare(path) == given.rows
        plain = time.perf_counter() - first
        peaks = {"anonymous": 0, "resident": 0}

        def watch() -> None:
            while not done.wait(0.1):
                peaks["anonymous"] = max(peaks["anonymous"], anonymous())
                peaks["resident"] = max(peaks["resident"], psutil.Process().memory_info().rss)

        watcher = threading.Thread(target=watch)
        watcher.start()
        target = Path(name) / "corpus"
        target.mkdir()
        first = time.perf_counter()
        assert fetched(path, target) == given.rows
        ours = time.perf_counter() - first
        done.set()
        watcher.join()
    found = {"rows": given.rows, "width": WIDTH, "bare_rows_a_second": round(given.rows / plain)}
    found |= {"rows_a_second": round(given.rows / ours), "ratio": round(plain / ours, 3), "peak_bytes": peaks}
    print(json.dumps({"machine": machine(1), **found}, indent=1))


if __name__ == "__main__":
    run(main)
