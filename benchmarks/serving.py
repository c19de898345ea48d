"""How long an answer of the server takes, beside the bare forward pass of the model on the same text.

`python -m benchmarks.serving data/sae/9 data/lm` starts the server in another process, asks it for one text again and
again, first alone and then from many clients at once, and prints one JSON object: milliseconds at the 50th and 99th
percentile, how many were turned away, and the largest memory.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil

from apps.serve.explainer import open_explainer
from benchmarks.training import machine
from strata.device.machine import Machine, start
from strata.run.door import run

TEXT = "The treaty was signed in Paris in the spring of 1763, and the war between the two kingdoms was over. " * 4
PORT = 8765


def ask(text: str) -> tuple[float, int]:
    """Milliseconds, and the status."""
    body = json.dumps({"text": text, "top_n": 10}).encode()
    first = time.perf_counter()
    try:
        with urlopen(Request(f"http://127.0.0.1:{PORT}/explain", body, {"content-type": "application/json"})) as answer:
            answer.read()
            status = answer.status
    except HTTPError as error:
        status = error.code
    return 1000 * (time.perf_counter() - first), status


def percentiles(times: list[float]) -> dict[str, float]:
    """p50 and p99."""
    cuts = statistics.quantiles(times, n=100)
    return {"p50": round(cuts[49], 1), "p99": round(cuts[98], 1)}


@contextmanager
def started(port: int, *words: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Inside the block a server of its own answers on ``port``. ``words``: the SAE, the model, the latents."""
    filled = [*words, *[""] * (3 - len(words))]
    with subprocess.Popen([sys.executable, "-m", "src.serve", *filled, "", str(port)]) as process:
        try:
            while True:
                with suppress(OSError):
                    urlopen(f"http://127.0.0.1:{port}/health", timeout=60).close()
                    break
                assert process.poll() is None, "the server did not start"
                time.sleep(0.5)
            yield process
        finally:
            process.terminate()


def served(words: list[str], requests: int, clients: int) -> dict[str, object]:
    """What the clients see."""
    with started(PORT, *words) as process:
        for _ in range(5):
            ask(TEXT)
        alone = [ask(TEXT)[0] for _ in range(requests)]
        with ThreadPoolExecutor(clients) as pool:
            first = time.perf_counter()
            crowd = list(pool.map(ask, [TEXT] * requests))
            seconds = time.perf_counter() - first
        memory = psutil.Process(process.pid).memory_info().rss
    done = [milliseconds for milliseconds, status in crowd if status == 200]
    return {
        "alone": percentiles(alone),
        "crowd": {"clients": clients, **percentiles(done), "answers_a_second": round(len(done) / seconds, 1)},
        "statuses": dict(Counter(status for _, status in crowd)),
        "resident_bytes": memory,
    }


def main(*words: str) -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=main.__doc__)
    parser.add_argument("sae", type=Path)
    parser.add_argument("lm", type=Path)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=200)
    given = parser.parse_args(words)
    found = served([str(given.sae), str(given.lm)], given.requests, given.clients)
    start(Machine(device="cpu", threads=2, save_every=60))
    explainer = open_explainer(given.sae, given.lm, None)
    assert explainer.lm is not None, "this benchmark is of a language model"
    ids = explainer.lm.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    bare = []
    for _ in range(given.requests // 4 + 3):
        first = time.perf_counter()
        explainer.activations(ids)
        bare.append(1000 * (time.perf_counter() - first))
    print(
        json.dumps(
            {"machine": machine(2), "tokens": len(ids), **found, "bare_forward": percentiles(bare[3:])}, indent=1
        )
    )


if __name__ == "__main__":
    run(main, options=True)
