"""What interpret writes of a layer, made by hand, with what a page must not run in every text."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from strata.interpretation.neighbours import nearest
from strata.run.files import sha256, write_json

LATENTS, DEAD, DENSE, SILENT_ID = 40, 7, 3, 39
EVIL = ["</script><script>alert(1)</script>", '" onmouseover="alert(2)', "<!--", "]]>", "<b>&amp;", "' autofocus '"]
PIECES = [" the", " cat", "\n", "▁sat", "  ", "\t", "\x1b[31m", " on", "é", *EVIL, " mat", "."]
EDGES = [0.0, *(2.0 ** (n / 2) for n in range(-4, 8))]


def planted(folder: Path, layer: int) -> Path:
    """Write `data/latents/<L>/` into ``folder``: latent j is active on one token in j + 1; one is dead, one is
    dropped, one has no explanation."""
    rng = np.random.default_rng(layer)
    folder.mkdir(parents=True)
    living = [latent for latent in range(LATENTS) if latent != DEAD]
    statistics, examples, tokens, logits, labels, notes, rules = [], [], [], [], [], [], []
    for latent in range(LATENTS):
        dead = latent == DEAD
        density, mean = (0.0, 0.0) if dead else (1 / (latent + 1), 2.0 + latent % 5)
        statistics.append(
            {
                "latent": latent, "active": round(1000 * density), "density": density, "mean": mean,
                "max": 0.0 if dead else 8.0, "importance": density * mean,
                "interest": density * mean * (latent not in (DEAD, DENSE)), "documents": 0 if dead else 9,
                "entropy": 1.0, "entropy_share": 0.5, "varentropy": 0.1, "quadrant": None if dead else "careful",
                "encoder_norm": 1.0, "decoder_norm": 1.0, "encoder_decoder_cosine": 0.5,
                "skew": None, "kurtosis": None, "dead": dead, "kept": latent not in (DEAD, DENSE),
                "dropped": "dead" if dead else "density" if latent == DENSE else None,
                "histogram": [0 if dead else int(n) for n in rng.integers(0, 50, len(EDGES) - 1)],
            }
        )  # fmt: skip
    for latent in living:
        for kind in ("top", "top", "decile-1", "decile-10", "random", "near", "zero"):
            rank = sum(row["latent"] == latent and row["kind"] == kind for row in examples)
            silent = kind in ("near", "zero")
            start = int(rng.integers(len(PIECES)))
            pieces = [PIECES[(start + n) % len(PIECES)] for n in range(12)]
            values = [0.0 if silent or n % (latent % 4 + 1) else 8.0 / (n + 1 + rank) for n in range(12)]
            examples.append(
                {
                    "latent": latent, "kind": kind, "rank": rank, "document": rank, "title": EVIL[rank], "label": "x",
                    "context": 0, "position": 20, "row": 20, "value": values[0], "first": 20,
                    "tokens": list(range(12)), "pieces": pieces, "values": values,
                }
            )  # fmt: skip
        for rank, piece in enumerate(PIECES[latent % 4 :][:6]):
            tokens.append(
                {
                    "latent": latent, "rank": rank, "token": rank, "piece": piece, "count": 10 - rank,
                    "share": 0.3 / (rank + 1), "background": 0.01, "lift": 30.0, "log_odds": 3.1, "mean": 4.0,
                }
            )  # fmt: skip
            for side, sign in (("promoted", 1), ("suppressed", -1)):
                logits.append(
                    {
                        "latent": latent,
                        "rank": rank,
                        "side": side,
                        "token": 1,
                        "piece": piece,
                        "value": sign / (1 + rank),
                    }
                )
        for level in ("token", "document"):
            labels.append(
                {
                    "latent": latent, "level": level, "label": EVIL[latent % len(EVIL)], "inside": 5, "size": 20,
                    "labelled": 30, "total": 300, "odds_ratio": None if latent % 2 else 3.0, "p": 0.001, "q": 0.01,
                }
            )  # fmt: skip
        for source in ("rule", "lm") if latent == 0 else ("rule",) if latent != SILENT_ID else ():
            text = f"latent {latent} {EVIL[latent % len(EVIL)]}"
            scores = {
                "f1": 0.8,
                "balanced_accuracy": 0.9 if source == "rule" else 0.6,
                "pearson": -0.2,
                "spearman": None,
            }
            notes.append(
                {"latent": latent, "source": source, "text": text, "name": text, **scores}
                | dict.fromkeys(("embedding", "fuzzing", "intruder"))
                | {f"{name}_chance": 0.5 for name in (*scores, "embedding", "fuzzing", "intruder")}
                | {"items": 20, "unparsed": 1 if source == "lm" else 0}
            )
        rules.append({"latent": latent, "offset": -1, "tokens": [1], "pieces": [EVIL[0]], "values": [3.0]})
    named = [
        {"latent": latent, "name": f"latent {latent} {EVIL[latent % len(EVIL)]}", "named_by": "rule"}
        for latent in living
        if latent != SILENT_ID
    ]
    alive = np.arange(LATENTS) != DEAD
    near = nearest(rng.normal(size=(LATENTS, 8)).astype(np.float32), alive, 5)
    tables = {
        "statistics": statistics, "examples": examples, "tokens": tokens, "logits": logits, "enrichment": labels,
        "explanations": notes, "names": named, "rules": rules,
    }  # fmt: skip
    for name, rows in tables.items():
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    pq.write_table(pa.table(near), folder / "neighbours.parquet")
    meta = {
        "layer": layer, "latents": LATENTS, "rows": 1000, "documents": 20, "model": {"name": "<tiny>"},
        "unit": "token", "texts": ["questions.csv"] if layer == 3 else None, "histogram_edges": EDGES, "shards": [],
    }  # fmt: skip
    write_json(folder / "meta.json", meta)
    return folder


def explained(folder: Path, latents: Path) -> Path:
    """Write `data/explained/<L>/` into ``folder``: what explain makes of `planted` latents, one named in new words."""
    folder.mkdir(parents=True)
    for name in ("explanations", "names"):
        rows = pq.read_table(latents / f"{name}.parquet").to_pylist()
        if name == "names":
            rows[0] |= {"name": f"words {EVIL[0]}", "named_by": "lm"}
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    layer = int(latents.name)
    write_json(folder / "meta.json", {"layer": layer, "latents": sha256(latents / "meta.json"), "files": {}})
    return folder
