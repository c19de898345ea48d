"""Vectors out of SQLite: rows a second and memory of fetch, beside a bare loop over the cursor.

`python -m benchmarks.database --rows 1000000` makes a database of random vectors as BLOBs in a temporary folder, reads
it with Python's own cursor and numpy (parsing each vector, keeping none), then as fetch does, which also shuffles,
splits and writes, and prints one JSON object.
"""

import argparse
import json
import sqlite3
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.extraction import watched
from benchmarks.training import machine
from strata.corpus import corpus
from strata.run import params
from strata.run.door import run

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
    wanted = params.check({"sources": [source], **plain, **shares}, corpus.Corpus, "corpus")
    return corpus.build(wanted, 0, folder)["documents"]


def main(*words: str) -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.database", description=main.__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    given = parser.parse_args(words)
    with TemporaryDirectory() as name:
        path, target = Path(name) / "items.sqlite", Path(name) / "corpus"
        make(path, given.rows)
        first = time.perf_counter()
        assert bare(path) == given.rows
        plain = time.perf_counter() - first
        target.mkdir()
        with watched() as peak:
            first = time.perf_counter()
            assert fetched(path, target) == given.rows
            ours = time.perf_counter() - first
    found = {"rows": given.rows, "width": WIDTH, "bare_rows_a_second": round(given.rows / plain)}
    found |= {"rows_a_second": round(given.rows / ours), "ratio": round(plain / ours, 3), "peak_bytes": peak}
    print(json.dumps({"machine": machine(1), **found}, indent=1))


if __name__ == "__main__":
    run(main, options=True)
