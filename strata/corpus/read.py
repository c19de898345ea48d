"""The readers of fetch's files.

`data/lm/`      meta.json, and the model's files unless it is a hub model: those stay in the hub's cache.
`data/corpus/`  meta.json and corpus.parquet: document, title, label, text, id, split, in shuffled order; where the
                source brought vectors, vectors.npy: float32 (document, width), in the same order.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from strata.run.door import BadInput
from strata.run.files import check_hashes, read_meta

SPLITS = ("train", "validation", "test")
CORPUS, VECTORS = "corpus.parquet", "vectors.npy"
# Kinds of what makes activations (fetch.lm.kind); the last: the corpus itself brings vectors.
LANGUAGE, SENTENCE, OWN_VECTORS = "language", "sentence", "vectors"


def lm_meta(folder: Path) -> dict[str, Any]:
    """Read what is known of the model in ``folder``.

    Keys: kind (see params.yaml), stored (folder, hub or null), name, source, revision, architecture, blocks, width,
    dtype, license, bytes (of the weights), fingerprint, and files with their sha256. A language model also has
    positions (tokens of a context at most, or null) and hooks (hook -> `ok`, or why it cannot be read).
    """
    return read_meta(folder / "meta.json", {"kind": str, "fingerprint": str}, "fetch_lm")


def lm_path(folder: Path, check: bool = True) -> tuple[str, dict[str, Any]]:
    """Return the arguments of transformers' ``from_pretrained``: a name or path, and keywords that forbid the network.

    Raises BadInput where a file in ``folder`` is not as fetch left it; ``check=False`` skips this check. Files in the
    hub's cache are never checked: they do not belong to Strata, and may be hundreds of GB.
    """
    meta = lm_meta(folder)
    if check and meta["stored"] == "folder":
        check_hashes(folder, meta.get("files", []), "fetch_lm")
    options: dict[str, Any] = {"local_files_only": True}
    if meta.get("trust_remote_code"):
        options["trust_remote_code"] = True
    if meta["stored"] == "hub":
        return meta["name"], {**options, "revision": meta["revision"]}
    return str(folder), options


def speechless(meta: dict[str, Any]) -> str | None:
    """Say why the model that :func:`lm_meta` describes cannot predict or write text; None for a language model."""
    if meta["kind"] == LANGUAGE:
        return None
    return f"not applicable: fetch.lm.kind is {meta['kind']}, so there is no language model"


def model_facts(meta: dict[str, Any]) -> dict[str, Any]:
    """Take the part of :func:`lm_meta` that identifies the model, for the meta.json of artifacts made with it."""
    return {key: meta[key] for key in ("name", "revision", "fingerprint")}


def corpus_meta(folder: Path) -> dict[str, Any]:
    """Read what is known of the text in ``folder``.

    Keys: documents, splits (split -> number of documents), labels (number of labels), chars, read (documents that were
    read), dropped (reason -> number of documents), sources, and the sha256 of corpus.parquet.
    """
    return read_meta(folder / "meta.json", {"documents": int, "splits": dict, "sha256": str}, _stage(folder))


def _stage(folder: Path) -> str:
    """Name the stage that writes this corpus, for messages."""
    return "fetch_texts" if folder.parent.name == "texts" else "fetch_corpus"


def _table(folder: Path) -> Path:
    """Return the path of corpus.parquet. Raises BadInput where the file is not as fetch left it."""
    check_hashes(folder, [{"file": CORPUS, "sha256": corpus_meta(folder)["sha256"]}], _stage(folder))
    return folder / CORPUS


def titles(folder: Path) -> tuple[list[str | None], list[str | None]]:
    """Read the title and the label of every document, in the file's order."""
    table = pq.read_table(_table(folder), columns=["title", "label"])
    return table["title"].to_pylist(), table["label"].to_pylist()


def vectors(folder: Path) -> NDArray[np.float32]:
    """Map the vectors (document, width) that the source brought into memory. Raises BadInput where it brought none."""
    sha256 = corpus_meta(folder).get("vectors_sha256")
    if sha256 is None:
        raise BadInput(f"{folder} has no vectors: name the column in params.yaml: fetch.corpus.sources, as vector")
    check_hashes(folder, [{"file": VECTORS, "sha256": sha256}], _stage(folder))
    return np.load(folder / VECTORS, mmap_mode="r")


def name(folder: Path, document: int) -> str:
    """Describe a document for a message: its id, or else its title, and the beginning of its text."""
    row = pq.read_table(_table(folder), columns=["id", "title", "text"]).slice(document, 1).to_pylist()[0]
    label = f"id {row['id']}" if row["id"] is not None else f"the document {row['title']!r}"
    return f"{label} ({row['text'][:40]!r})"


class Texts:
    """The texts of a corpus by document. The four row groups of its file that were used last are in memory."""

    def __init__(self, folder: Path) -> None:
        self._file = pq.ParquetFile(_table(folder))
        sizes = [self._file.metadata.row_group(n).num_rows for n in range(self._file.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        self._group = lru_cache(4)(lambda n: self._file.read_row_group(n, ["text"])["text"])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def of(self, documents: Sequence[int] | NDArray[np.integer]) -> list[str]:
        """Read the text of each of ``documents``, which are rows of the file."""
        groups = np.searchsorted(self._starts, documents, side="right") - 1
        return [
            self._group(int(group))[int(document - self._starts[group])].as_py()
            for group, document in zip(groups, documents, strict=True)
        ]


def documents(folder: Path, split: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield the documents of one split, or of all, in the file's order. One batch is in memory at a time.

    Keys: document (its row in the file), title, label (or None), text, id (or None), split.
    """
    expected, path = corpus_meta(folder)["documents"], _table(folder)
    with pq.ParquetFile(path) as file:
        if file.metadata.num_rows != expected:
            raise BadInput(f"{path} has {file.metadata.num_rows} documents, but its meta.json says {expected}")
        for batch in file.iter_batches(batch_size=1024):
            yield from (row for row in batch.to_pylist() if split is None or row["split"] == split)
