"""How long the server takes for a token that it writes, beside what the writing alone takes.

`python -m benchmarks.live data/sae/9 data/lm data/latents/9` starts the server in another process, lets it write a text
and notes when each line arrives. Beside it, in this process, the same model writes the same text, and nobody looks at
latents. Prints one JSON object of milliseconds.
"""

import argparse
import json
import os
import time
from itertools import pairwise
from pathlib import Path
from urllib.request import Request, urlopen

from apps.serve.explainer import open_explainer
from apps.serve.live import Writing
from apps.serve.messages import Write
from benchmarks.serving import percentiles, started
from benchmarks.training import machine
from strata.device.machine import Machine, start
from strata.run.door import run

PORT = 8766
TEXT = "The treaty was signed in Paris in the spring of 1763, and the war between the two kingdoms was over. "


def served(words: list[str], asked: Write, rounds: int) -> tuple[list[float], str]:
    """Milliseconds between a token and the one before it, as the client sees them; and the text."""
    times: list[float] = []
    with started(PORT, *words):
        for _ in range(rounds + 1):  # the first warms up
            arrived, text = _written(asked)
            times += [1000 * (after - before) for before, after in pairwise(arrived)]
    return times[len(times) // (rounds + 1) :], text


def _written(asked: Write) -> tuple[list[float], str]:
    """When the line of each token arrived, and the text."""
    request = Request(
        f"http://127.0.0.1:{PORT}/generate", asked.model_dump_json().encode(), {"content-type": "application/json"}
    )
    arrived, text = [], ""
    with urlopen(request) as answer:
        for line in answer:
            found = json.loads(line)
            if "end" not in found:
                arrived.append(time.perf_counter())
            text += found.get("token", {}).get("token", "")
    return arrived, text


def bare(sae: Path, lm: Path, latents: Path, asked: Write, rounds: int) -> list[float]:
    """Milliseconds of each step of the model alone, steered as asked for."""
    device = start(Machine(device="auto", threads=os.cpu_count() or 1, save_every=60))  # as src.serve does
    explainer, times = open_explainer(sae, lm, latents, device), []
    for number in range(rounds + 1):
        writing = Writing(explainer, asked)
        writing.prompt()
        first = time.perf_counter()
        while not isinstance(writing.write(), str):
            now = time.perf_counter()
            if number:
                times.append(1000 * (now - first))
            first = now
    return times


def main(*words: str) -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.live", description=main.__doc__)
    for name in ("sae", "lm", "latents"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--prompt", type=int, default=1, help="times that the prompt's sentence stands in it")
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steer", type=int, help="a latent that is steered with")
    given = parser.parse_args(words)
    steer = {} if given.steer is None else {given.steer: 0.5}
    asked = Write(text=TEXT * given.prompt, tokens=given.tokens, steer=steer)

    seen, text = served([str(given.sae), str(given.lm), str(given.latents)], asked, given.rounds)
    alone = bare(given.sae, given.lm, given.latents, asked, given.rounds)
    beyond = percentiles(seen)["p50"] - percentiles(alone)["p50"]
    found = {"token": percentiles(seen), "writing_alone": percentiles(alone), "beyond_p50": round(beyond, 1)}
    print(json.dumps({"machine": machine(2), "text": text, **found}, indent=1))


if __name__ == "__main__":
    run(main, options=True)
