"""Hold the arithmetic of explanation scores against that of delphi (eai-delphi), on the same replies.

In the environment of Strata, draw what a judge could reply of the windows of many latents, with replies that cannot be
read among them, and score it. Then let delphi's own functions score the same replies in an environment of their own
(benchmarks/requirements-delphi.txt), and compare.

    python -m benchmarks.delphi_oracle ours /tmp/delphi-oracle
    ENV/bin/python benchmarks/delphi_oracle.py theirs /tmp/delphi-oracle
    python -m benchmarks.delphi_oracle compare /tmp/delphi-oracle

Compared are F1, balanced accuracy (delphi calls it accuracy), the AUC of probabilities, and the correlation, which
delphi takes from numpy.corrcoef. Where a score is undefined we say so, and delphi says 0 or NaN; those are left out.
"""

import json
import sys
from pathlib import Path
from typing import Any

LATENTS, WINDOWS = 1000, 40
REPLIES = "replies.json"
NAMES = ("f1", "balanced_accuracy", "auc", "pearson")


def ours(folder: str) -> None:
    """Draw replies into FOLDER, and score them."""
    import numpy as np

    from strata.interpretation.scoring import auc, score

    random = np.random.default_rng(0)
    replies, scores = [], []
    for latent in range(LATENTS):
        # From a judge that knows nothing to one that knows all; some latents fire nowhere, or everywhere.
        share, skill, unread = random.choice([0.0, 0.1, 0.5, 0.9, 1.0]), random.random(), random.choice([0.0, 0.2])
        truth = np.where(random.random(WINDOWS) < share, random.random(WINDOWS) * 10 + 0.1, 0.0)
        wild = random.integers(0, 11, WINDOWS) * (random.random() < 0.8)  # or silent throughout
        guess = np.where(random.random(WINDOWS) < skill, truth, wild)
        said = np.where(random.random(WINDOWS) < unread, np.nan, np.round(guess))
        replies.append({"latent": latent, "truth": truth.tolist(), "said": [None if x != x else x for x in said]})

        read = ~np.isnan(said)
        found: dict[str, Any] = score(truth, said)
        scores.append({**found, "auc": auc(truth[read] > 0, said[read])})

    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / REPLIES).write_text(json.dumps(replies))
    (Path(folder) / "ours.json").write_text(json.dumps(scores))


def theirs(folder: str) -> None:
    """Score the replies of FOLDER with delphi's functions, in its own environment."""
    import numpy as np
    import pandas as pd
    from delphi.log.result_analysis import (  # pyright: ignore[reportMissingImports]
        compute_auc,
        compute_classification_metrics,
        compute_confusion,
    )

    scores = []
    for reply in json.loads((Path(folder) / REPLIES).read_text()):
        truth, said = np.array(reply["truth"]), np.array(reply["said"], float)
        frame = pd.DataFrame({
            "activating": truth > 0,
            "prediction": [None if value != value else bool(value > 0) for value in said],
            "probability": said / 10,
        })  # fmt: skip
        metrics = compute_classification_metrics(compute_confusion(frame))
        read = ~np.isnan(said)
        both = frame[read].activating.nunique() == 2
        with np.errstate(all="ignore"):
            scores.append({
                "f1": float(metrics["f1_score"]),
                "balanced_accuracy": float(metrics["accuracy"]),
                "auc": float(compute_auc(frame)) if both else None,
                "pearson": float(np.corrcoef(truth[read], said[read])[0, 1]),
            })  # fmt: skip
    (Path(folder) / "theirs.json").write_text(json.dumps(scores))


def compare(folder: str) -> None:
    """Print the largest difference of each score, and how many are undefined with us."""
    mine, other = (json.loads((Path(folder) / f"{side}.json").read_text()) for side in ("ours", "theirs"))
    for name in NAMES:
        pairs = [(one[name], two[name]) for one, two in zip(mine, other, strict=True) if one[name] is not None]
        apart = max(abs(one - two) for one, two in pairs)
        print(f"{name:>18}: {len(pairs)} of {len(mine)} latents, at most {apart:.1e} apart")


if __name__ == "__main__":
    command, *words = sys.argv[1:]
    {"ours": ours, "theirs": theirs, "compare": compare}[command](*words)
