"""Opens what fetch wrote; the only part of this room that others import.

`data/lm/`      meta.json, and the model's files unless it is a hub model: those stay in the hub's cache.
`data/corpus/`  meta.json and corpus.parquet: document, title, label, text, split, in shuffled order.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.door import BadInput
from stages.files import read_json

SPLITS = ("train", "validation", "test")


def lm_meta(folder: Path) -> dict[str, Any]:
    """What is known of the model: kind (folder or hub), name, source, revision, architecture, blocks, width, dtype,
    license, bytes of its weights, fingerprint, files with their sha256."""
    return read_json(folder / "meta.json")


def lm_path(folder: Path) -> tuple[str, dict[str, Any]]:
    """What to give transformers' ``from_pretrained``: a name or path, and keywords. No network is reached for."""
    meta = lm_meta(folder)
    options: dict[str, Any] = {"local_files_only": True}
    if meta["trust_remote_code"]:
        options["trust_remote_code"] = True
    if meta["kind"] == "hub":
        return meta["name"], {**options, "revision": meta["revision"]}
    return str(folder), options


def model_facts(meta: dict[str, Any]) -> dict[str, Any]:
    """The part of :func:`lm_meta` that says which model it is, for the artifacts made with it."""
    return {key: meta[key] for key in ("name", "revision", "fingerprint")}


def corpus_meta(folder: Path) -> dict[str, Any]:
    """What is known of the text: documents, splits (split -> documents), labels (their number), chars, read, dropped
    (reason -> documents), sources, sha256 of corpus.parquet."""
    return read_json(folder / "meta.json")


def titles(folder: Path) -> tuple[list[str | None], list[str | None]]:
    """Title and label of every document, in the file's order."""
    path = folder / "corpus.parquet"
    try:
        table = pq.read_table(path, columns=["title", "label"])
    except FileNotFoundError:
        raise BadInput(f"{path} is missing; run `dvc repro fetch`") from None
    except pa.ArrowInvalid as error:
        raise BadInput(f"{path} is not a whole Parquet file: {error}") from None
    return table["title"].to_pylist(), table["label"].to_pylist()


def documents(folder: Path, split: str | None = None) -> Iterator[dict[str, Any]]:
    """The documents of one split, or all, in the file's order: document (its row in the file), title, label (or None),
    text, split. One batch is in memory at a time."""
    expected, path = corpus_meta(folder)["documents"], folder / "corpus.parquet"
    try:
        with pq.ParquetFile(path) as file:
            if file.metadata.num_rows != expected:
                raise BadInput(f"{path} has {file.metadata.num_rows} documents, but its meta.json says {expected}")
            for batch in file.iter_batches(batch_size=1024):
                yield from (row for row in batch.to_pylist() if split is None or row["split"] == split)
    except FileNotFoundError:
        raise BadInput(f"{path} is missing; run `dvc repro fetch`") from None
    except pa.ArrowInvalid as error:
        raise BadInput(f"{path} is not a whole Parquet file: {error}") from None
