"""Write `data/inverted/<L>/`: tables, a summary, pictures, and meta.json last."""

import csv
import io
from pathlib import Path
from typing import Any

import pyarrow as pa

from strata.inversion import pictures
from strata.inversion.invert import Row, summary
from strata.run import files
from strata.run.files import write_bytes, write_json, write_text

INT, REAL, WORD, FLAG = pa.int32(), pa.float64(), pa.string(), pa.bool_()
PROMPTS = pa.schema(
    {
        "latent": INT, "prompt": INT, "method": WORD, "start": WORD, "number": INT, "best": FLAG, "text": WORD,
        "tokens": pa.list_(INT), "pieces": pa.list_(WORD), "survived": FLAG, "activation": REAL,
        "cross_entropy": REAL, "specificity": REAL, "front": FLAG, "calls": INT,
    }
)  # fmt: skip
POSITIONS = pa.schema(
    {"latent": INT, "prompt": INT, "position": INT, "token": INT, "piece": WORD, "cosine": REAL, "activation": REAL}
)
CURVES = pa.schema({"latent": INT, "method": WORD, "calls": INT, "activation": REAL})
SUMMARY = (
    *("latent", "text", "method", "start", "activation", "corpus_max", "ratio", "random", "template"),
    *("cross_entropy", "specificity", "calls", "beats_random", "beats_corpus"),
)


def write(folder: Path, found: list[Row], meta: dict[str, Any]) -> None:
    """Write the rows ``found``, one for each latent as `invert.one` makes it, into ``folder``."""
    summaries = [summary(row) for row in found]
    curves = [{"latent": row["latent"], **point} for row in found for point in row["curves"]]
    tables = {
        "prompts": (prompts(found), PROMPTS),
        "positions": (positions(found), POSITIONS),
        "curves": (curves, CURVES),
    }
    for name, (table, schema) in tables.items():
        columns = {field.name: pa.array([row[field.name] for row in table], field.type) for field in schema}
        files.write_table(folder / f"{name}.parquet", columns, schema)

    write_text(folder / "summary.csv", summary_csv(summaries))
    write_bytes(folder / "heatmap.png", pictures.heatmap(summaries))
    write_bytes(folder / "curves.png", pictures.curves(found))
    write_json(folder / "meta.json", {**meta, "latents": [row["latent"] for row in found]})


def prompts(found: list[Row]) -> list[Row]:
    """Make a row for each prompt, numbered within its latent."""
    return [
        {"latent": row["latent"], "prompt": number, **prompt}
        for row in found
        for number, prompt in enumerate(row["prompts"])
    ]


def positions(found: list[Row]) -> list[Row]:
    """Make a row for each token of each prompt. BOS has none: the first token behind it is position 0."""
    table = []
    for prompt in prompts(found):
        cosines = prompt["cosines"] or [None] * len(prompt["tokens"])
        columns = zip(prompt["tokens"], prompt["pieces"], cosines, prompt["values"], strict=True)
        for position, (token, piece, cosine, value) in enumerate(columns):
            key = {"latent": prompt["latent"], "prompt": prompt["prompt"], "position": position}
            table.append({**key, "token": token, "piece": piece, "cosine": cosine, "activation": value})
    return table


def summary_csv(rows: list[Row]) -> str:
    """Write a CSV row for each latent: its best prompt, and what that has to beat."""
    text = io.StringIO()
    writer = csv.DictWriter(text, SUMMARY, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
