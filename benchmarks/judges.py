"""How well a local model tells texts that hold what is described from texts that do not, by two ways of judging.

The descriptions are right by construction: each stands for a regular expression, and windows of the run's text match
it or not. Judged by log p(description | text), as `strata/interpretation/judges.py` does, and by the log-odds of Yes
against No when the model is asked.
"""

import argparse
import json
import re
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from strata.device.machine import CPU, fast_dtype
from strata.interpretation import text as texts
from strata.interpretation.explanations import Example
from strata.interpretation.judges import batches_of, log_likelihoods
from strata.interpretation.questions import content_prompt
from strata.interpretation.scoring import auc
from strata.interpretation.vocabulary import of_run
from strata.interpretation.writers import Chat
from strata.lm.model import LanguageModel, load
from strata.rows.shards import open_contexts
from strata.run.door import run
from strata.weights.unpacked import unpacked

WINDOW = 32  # tokens
EACH = 10  # windows that match, and as many that do not
MONTHS = "January|February|March|April|June|July|August|September|October|November|December"
COUNTRIES = "France|Germany|England|China|Japan|India|Russia|Italy|Spain|Austria|Canada|Australia|Greece|Turkey|Poland"
PLANTED = {  # description -> what matches
    'the word "or"': r"\bor\b",
    'the word "that"': r"\bthat\b",
    'the word "was"': r"\bwas\b",
    'the word "not"': r"\bnot\b",
    "names of months": rf"\b({MONTHS})\b",
    "numbers": r"\d",
    "years": r"\b1[789]\d\d\b",
    "opening brackets": r"\(",
    "words that end in -ing": r"ing\b",
    "names of countries": rf"\b({COUNTRIES})\b",
    "family members": r"\b(father|mother|brother|sister|son|daughter|wife|husband|uncle)\b",
    "war and armies": r"\b(war|army|battle|troops|military|soldiers)\b",
    "religion": r"\b(church|God|Christian|religious|religion|Catholic|Jewish|Islam\w*)\b",
}


def windows(data: Path) -> list[str]:
    """Read the windows of a run's text."""
    contexts = open_contexts(data / "activations" / "tokens")
    pieces = of_run(data / "lm", data / "corpus", "float32", CPU).pieces
    with TemporaryDirectory() as work:
        text = texts.read_text(contexts, Path(work), WINDOW)
        bounds = zip(*text.bounds(np.arange(text.windows)), strict=True)
        return ["".join(pieces(text.token[first:end].tolist())) for first, end in bounds if 2 * (end - first) >= WINDOW]


def judged(lm: LanguageModel, questions: list[Chat], answers: list[str]) -> np.ndarray:
    """Compute log p of each answer to each question, (question, answer)."""
    found: dict[Chat, list[float]] = {}
    for batch in batches_of(set(questions), lm, 16):
        found |= zip(batch, log_likelihoods(lm, batch, [answers] * len(batch)), strict=True)
    return np.array([found[question] for question in questions])


def main(*words: str) -> None:
    """Print a line of JSON a description: the AUC of both ways, how often Yes is likelier than No, and seconds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.judges", description=main.__doc__)
    parser.add_argument("data", type=Path, help="what the pipeline wrote: lm, corpus, activations")
    parser.add_argument("--model", default="package:qwen2.5-coder-1.5b-instruct")
    given = parser.parse_args(words)

    lm = load(unpacked(given.model), fast_dtype(CPU), CPU, local_files_only=True)
    texts_of_run, random = windows(given.data), np.random.default_rng(0)
    for description, pattern in PLANTED.items():
        matching = [text for text in texts_of_run if re.search(pattern, text)]
        others = [text for text in texts_of_run if not re.search(pattern, text, re.IGNORECASE)]
        drawn = [str(text) for kind in (matching, others) for text in random.choice(kind, EACH, replace=False)]
        fires = np.arange(2 * EACH) < EACH

        began = time.perf_counter()
        likely = judged(lm, [content_prompt(Example([text], [0.0])) for text in drawn], [description])[:, 0]
        middle = time.perf_counter()
        asked = [
            (f'Does the following text contain {description}? Answer Yes or No.\n\n"{" ".join(text.split())}"',)
            for text in drawn
        ]
        odds = np.subtract(*judged(lm, asked, ["Yes", "No"]).T)
        line = {
            "description": description,
            "likelihood": auc(fires, likely),
            "asked": auc(fires, odds),
            "yes": float((odds > 0).mean()),
            "seconds": [round(middle - began, 1), round(time.perf_counter() - middle, 1)],
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    run(main, options=True)
