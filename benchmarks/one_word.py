"""A positive control of explanations: latents that fire on one word alone, and what a language model says of them.

The token rule says which latents these are. The model is right if it names the word.

    python -m benchmarks.one_word data 9 --model package:qwen2.5-coder-1.5b-instruct
"""

import argparse
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from strata.device.machine import CPU
from strata.interpretation import explanations
from strata.interpretation.explain import explain, open_writer
from strata.interpretation.explain_knobs import Explain
from strata.interpretation.read import Latents, open_latents
from strata.interpretation.scoring import bare
from strata.interpretation.text import read_text
from strata.interpretation.vocabulary import of_run
from strata.rows.shards import open_contexts
from strata.run import params, resume
from strata.run.door import run

LEAST = 0.9  # balanced accuracy of the rule


def one_word(latents: Latents) -> dict[int, str]:
    """Return the latents whose token rule is one word, in any writing, and that word: latent -> word."""
    pieces: dict[int, set[str]] = {}
    for row in _rows(latents, "rules"):
        here = {bare(piece) for piece in row["pieces"]} if row["offset"] == 0 else {""}
        pieces.setdefault(row["latent"], set()).update(here)
    scores = {row["latent"]: row for row in _rows(latents, "explanations") if row["source"] == "rule"}
    return {
        latent: word
        for latent, words in sorted(pieces.items())
        if len(words) == 1 and (word := next(iter(words))) and (scores[latent]["balanced_accuracy"] or 0) >= LEAST
    }


def _rows(latents: Latents, name: str) -> list[dict[str, Any]]:
    table = latents.table(name)
    return [] if table is None else table.to_pylist()


def main(*words: str) -> None:
    """Print a line of JSON a latent: its word, what the model says, whether it is right, and its score."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.one_word", description=main.__doc__)
    parser.add_argument("data", type=Path, help="what the pipeline wrote: lm, corpus, activations, latents")
    parser.add_argument("layer", type=int)
    parser.add_argument("--model", default="package:qwen2.5-coder-1.5b-instruct")
    parser.add_argument("--latents", type=int, default=32)
    parser.add_argument("--window", type=int, default=12, help="tokens of a window that is judged")
    given = parser.parse_args(words)

    latents = open_latents(given.data / "latents" / str(given.layer))
    word_of = one_word(latents)
    drawn = np.random.default_rng(0).permutation(list(word_of))[: given.latents].tolist()
    knobs = params.load("explain", Explain).model_copy(update={"model": given.model})
    interpreted = latents.meta["interpret"]
    vocabulary = of_run(given.data / "lm", given.data / "corpus", "float32", CPU)

    with TemporaryDirectory() as work:
        text = read_text(open_contexts(given.data / "activations" / "tokens"), Path(work), interpreted["window"])
        halves = explanations.split(text, vocabulary.opening, latents.meta["seed"])
        cases = [
            explanations.case(
                latents.columns(latent, latent + 1),
                latent,
                halves,
                text,
                shown=knobs.shown,
                silent=knobs.silent,
                items=interpreted["items"],
                pieces=vocabulary.pieces,
                judged=given.window,
            )
            for latent in sorted(drawn)
        ]

    began = time.perf_counter()
    answers = open_writer(knobs, None, "", resume.main_root() / ".replies")
    found = explain(cases, answers.writer, answers.kind, 0, answers.fits, answers.judge)
    right = []
    for one in found:
        word = word_of[one.latent]
        right.append(word in bare(one.text or "").split())
        scores = {name: one.scores[name] for name in ("balanced_accuracy", "balanced_accuracy_chance")}
        print(json.dumps({"latent": one.latent, "word": word, "said": one.text, "right": right[-1], **scores}))
    summary = {"right": sum(right), "of": len(right), "one_word": len(word_of)}
    print(json.dumps(summary | {"seconds": round(time.perf_counter() - began)}))


if __name__ == "__main__":
    run(main, options=True)
