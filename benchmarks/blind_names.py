"""Names of latents beside their contexts, for somebody who judges them and does not know where they come from.

Half of the names that are shown belong to their latent, and half to another one, so that a reader who calls everything
right is found out. The reader says of each: right, vague or wrong.

    python -m benchmarks.blind_names write data/latents/9 /tmp/blind      # items.md to read, key.json to put away
    python -m benchmarks.blind_names score /tmp/blind                     # after the reader wrote answers.json there
"""

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from strata.interpretation.labels import open_named
from strata.pages.readable import inline

NAMES = 20  # of latents, and as many of other latents
SHOWN = {"top": 5, "random": 5}  # contexts of each kind
MARKED = 0.3  # of the context's strongest token


def write(folder: str, target: str) -> None:
    """Draw latents of FOLDER that have a name, and write them into TARGET."""
    latents, random = open_named(Path(folder)), np.random.default_rng(0)
    names = latents.names()
    drawn = random.choice(sorted(names), 2 * NAMES, replace=False).tolist()
    own, shuffled = drawn[:NAMES], drawn[NAMES:]
    shown = {latent: names[latent] for latent in own}
    shown |= {latent: names[other] for latent, other in zip(shuffled, np.roll(shuffled, 1).tolist(), strict=True)}

    items, key = [], []
    for number, latent in enumerate(random.permutation(drawn).tolist(), 1):
        lines = [f"## {number}. {shown[latent]}", ""]
        examples = latents.rows("examples", latent)
        for kind, most in SHOWN.items():
            of_kind = sorted((row for row in examples if row["kind"] == kind), key=lambda row: row["rank"])
            lines += [f"- {_marked(row['pieces'], row['values'])}" for row in of_kind[:most]]
        items.append("\n".join(lines))
        key.append({"item": number, "latent": latent, "name": shown[latent], "own": latent in own})

    Path(target).mkdir(parents=True, exist_ok=True)
    (Path(target) / "items.md").write_text("\n\n".join(items) + "\n", encoding="utf-8")
    (Path(target) / "key.json").write_text(json.dumps(key, indent=1, ensure_ascii=False), encoding="utf-8")


def _marked(pieces: list[str], values: list[float]) -> str:
    """Write a context on one line, with its strong tokens in double angle brackets."""
    most = max(values)
    return "".join(
        f"<<{inline(piece)}>>" if value >= MARKED * most and value > 0 else inline(piece)
        for piece, value in zip(pieces, values, strict=True)
    )


def score(target: str) -> None:
    """Count what the reader said, in `answers.json` as item -> right, vague or wrong, of own and of other names."""
    answers = json.loads((Path(target) / "answers.json").read_text(encoding="utf-8"))
    key = json.loads((Path(target) / "key.json").read_text(encoding="utf-8"))
    for own, what in ((True, "own names"), (False, "names of other latents")):
        print(f"{what}: {dict(Counter(answers[str(row['item'])] for row in key if row['own'] is own))}")
    for row in key:
        print(f"{row['item']:>2} {'own  ' if row['own'] else 'other'} {answers[str(row['item'])]:<5} {row['name']}")


if __name__ == "__main__":
    command, *words = sys.argv[1:]
    {"write": write, "score": score}[command](*words)
