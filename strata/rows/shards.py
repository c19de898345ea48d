"""Write and read the files of extract: shards of activations (safetensors), and the contexts that they come from.

The header of a shard names model, hook, layer and number, so that a foreign shard is recognised without hashing it.
Rows are appended as they are computed, so memory does not depend on the size of a shard.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from strata.rows.size import Size
from strata.run.door import BadInput
from strata.run.files import again, check_hashes, read_meta, sha256
from strata.run.params import Hook
from strata.run.progress import Progress

DTYPE = torch.bfloat16  # on disk, whatever the forward pass ran in; only vectors that the user brought keep float32
WORDS = {DTYPE: "BF16", torch.float32: "F32"}  # names of dtypes in safetensors
DTYPES = {"bfloat16": DTYPE, "float32": torch.float32}  # names of dtypes in meta.json

# The keys that meta.json must have, and the types of their values.
ROWS = {
    "model": dict, "corpus": str, "hook": str, "layer": int, "width": int, "rows": int, "shard_rows": int,
    "shards": list, "splits": dict, "scale": float, "median_norm": float, "mean": list,
}  # fmt: skip
TOKENS = {"model": dict, "corpus": str, "context": int, "file_contexts": int, "rows": int, "files": list}
TOKENS |= {"contexts": dict, "splits": dict}


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


def header(rows: int, width: int, identity: dict[str, str], dtype: torch.dtype = DTYPE) -> bytes:
    """Return the safetensors header of a file with one tensor ``x``, (rows, width) of ``dtype``.

    It is the length of the JSON in 8 bytes, and the JSON, padded to a multiple of 8 bytes.
    """
    size = rows * width * dtype.itemsize
    tensor = {"dtype": WORDS[dtype], "shape": [rows, width], "data_offsets": [0, size]}
    text = json.dumps({"__metadata__": identity, "x": tensor}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


class ShardWriter:
    """Appends rows to a shard of known size. ``left``: how many rows are still to come."""

    def __init__(self, file: Any, rows: int, width: int, identity: dict[str, str], dtype: torch.dtype) -> None:
        self.left, self._file, self._dtype = rows, file, dtype
        file.write(header(rows, width, identity, dtype))

    def append(self, rows: Tensor) -> None:
        """Append ``rows`` (row, width), contiguous, of the shard's dtype, on the CPU."""
        assert rows.dtype is self._dtype
        self.left -= len(rows)
        self._file.write(rows.view(torch.uint8).numpy())


@contextmanager
def writing(
    path: Path, rows: int, width: int, identity: dict[str, str], dtype: torch.dtype = DTYPE
) -> Iterator[ShardWriter]:
    """Open a shard for appending. All of its rows must be appended before the block ends.

    It is written in place, so ``path`` must be temporary, or in a folder without meta.json.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        writer = ShardWriter(file, rows, width, identity, dtype)
        yield writer
        assert writer.left == 0, f"{path}: {writer.left} rows were not written"


@dataclass(frozen=True)
class Activations:
    """The stored activations of one layer, memory-mapped.

    Nothing is read before a row is wanted; then its shard is hashed once. ``meta`` is the content of `meta.json`.
    ``scale``, ``mean`` (width,) and ``median_norm`` are those of the training rows, as
    :class:`~strata.rows.spread.Spread` has them. ``shards``: (rows, width) each. ``unchecked``: the numbers of the
    shards that are not hashed yet.
    """

    folder: Path
    meta: dict[str, Any]
    shards: list[Tensor]
    unchecked: set[int] = field(default_factory=set)

    @property
    def rows(self) -> int:
        return self.meta["rows"]

    @property
    def width(self) -> int:
        return self.meta["width"]

    @property
    def layer(self) -> int:
        return self.meta["layer"]

    @property
    def scale(self) -> float:
        return self.meta["scale"]

    @property
    def median_norm(self) -> float:
        return self.meta["median_norm"]

    @property
    def mean(self) -> Tensor:
        return torch.tensor(self.meta["mean"])

    @property
    def of_tokens(self) -> bool:
        """Whether a row is a token that a language model read; else it is a document."""
        return self.meta["hook"] in get_args(Hook)

    @property
    def hook_name(self) -> str:
        """SAELens's name of the place in the model where the rows come from; of documents, the hook as it is."""
        hook = self.meta["hook"]
        return f"blocks.{self.layer}.hook_{hook}" if self.of_tokens else hook

    @property
    def size(self) -> Size:
        """The kind, number and width of the training rows, from which values of `auto` follow."""
        first, end = self.split("train")
        return Size(self.meta["hook"], end - first, self.width)

    def split(self, name: str) -> tuple[int, int]:
        """Return the first row of a split, and the row after its last."""
        first, end = self.meta["splits"][name]
        return first, end

    def read(self, first: int, end: int) -> Tensor:
        """Return the rows ``first`` to ``end`` - 1, (row, width) in the dtype on disk.

        Raises BadInput where a shard is not as extract left it.
        """
        size = self.meta["shard_rows"]
        parts = []
        while first < end:
            number, offset = divmod(first, size)
            if number in self.unchecked:
                self._check(number)
            parts.append(self.shards[number][offset : offset + end - first])
            first += len(parts[-1])
        return torch.cat(parts) if len(parts) != 1 else parts[0]

    def blocks(self, first: int, end: int, rows: int = 4096) -> Iterator[Tensor]:
        """Yield the rows ``first`` to ``end`` - 1 in order, in blocks of ``rows``."""
        with Progress("read", "rows", end - first) as progress:
            for start in range(first, end, rows):
                stop = min(start + rows, end)
                yield self.read(start, stop)
                progress.update(stop - start)

    def _check(self, number: int) -> None:
        """Hash a shard and those after it, as many at a time as there are cores.

        Where rows are shuffled, the others are wanted soon, too.
        """
        ahead = sorted(self.unchecked.intersection(range(number, number + (os.cpu_count() or 1))))
        check_hashes(self.folder, [self.meta["shards"][number] for number in ahead], "extract")
        self.unchecked.difference_update(ahead)


def open_activations(folder: Path) -> Activations:
    """Open a layer's folder. Raises BadInput, which names the file, for a truncated, foreign or missing shard."""
    activations = mapped(folder, read_meta(folder / "meta.json", ROWS, "extract"))
    activations.unchecked.update(range(len(activations.shards)))
    return activations


def mapped(folder: Path, meta: dict[str, Any]) -> Activations:
    """Map the shards that ``meta`` lists into memory. They count as checked."""
    dtype = DTYPES[meta["dtype"]]
    shards = [
        _map(folder / shard["file"], shard["rows"], meta["width"], identity(meta, number), dtype)
        for number, shard in enumerate(meta["shards"])
    ]
    return Activations(folder, meta, shards)


def identity(meta: dict[str, Any], number: int) -> dict[str, str]:
    """Return what the header of the shard ``number`` says about where it belongs."""
    return {"model": meta["model"]["fingerprint"], "hook": f"{meta['hook']}.{meta['layer']}", "number": str(number)}


def _map(path: Path, rows: int, width: int, belongs: dict[str, str], dtype: torch.dtype) -> Tensor:
    """Map a shard into memory, (rows, width), after checking its header against ``belongs`` and its size."""
    try:
        with path.open("rb") as file:
            start = file.read(8)
            size = int.from_bytes(start, "little")
            start += file.read(min(size, 1 << 20))
    except FileNotFoundError:
        raise BadInput(f"{path} is missing; {again('extract')}") from None
    expected = header(rows, width, belongs, dtype)
    if start != expected:
        raise BadInput(f"{path} is not the shard that its meta.json describes: it belongs to {_belongs(start)}")
    expected_size = len(expected) + rows * width * dtype.itemsize
    if (size_on_disk := path.stat().st_size) != expected_size:
        raise BadInput(f"{path} is truncated: {size_on_disk} bytes of {expected_size}; {again('extract')}")

    # A private map: what is written to the tensor never reaches the file.
    raw = torch.from_file(str(path), shared=False, size=expected_size, dtype=torch.uint8)
    return raw[len(expected) :].view(dtype).view(rows, width)


def _belongs(start: bytes) -> str:
    """Describe the file that begins with the bytes ``start``, for a message."""
    try:
        facts = json.loads(start[8:])
        return f"{facts.get('__metadata__', 'no layer of Strata')}, shape {facts['x']['shape']}"
    except (ValueError, KeyError):
        return "no safetensors file that extract wrote"


@dataclass(frozen=True)
class Contexts:
    """The stored contexts of tokens that the model read.

    A context is a fixed number of positions. A position is an activation row if its document is not -1. Rows are
    numbered context by context, position by position.
    """

    folder: Path
    meta: dict[str, Any]

    def split(self, name: str) -> tuple[int, int]:
        """Return the first context of a split, and the context after its last."""
        first, end = self.meta["contexts"][name]
        return first, end

    def read(self, first: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Return tokens and documents of the contexts ``first`` to ``end`` - 1, each int32 (context, position).

        Raises BadInput where a file is not as extract left it.
        """
        size = self.meta["file_contexts"]
        empty = (0, self.meta["context"])  # the shape of no contexts, so that there is something to concatenate
        tokens, documents = [np.empty(empty, np.int32)], [np.empty(empty, np.int32)]

        numbers = range(first // size, -(-end // size)) if first < end else range(0)
        check_hashes(self.folder, [self.meta["files"][number] for number in numbers], "extract")
        for number in numbers:
            start, stop = max(0, first - number * size), min(size, end - number * size)
            with safe_open(self.folder / self.meta["files"][number]["file"], "numpy") as file:
                tokens.append(file.get_slice("token")[start:stop])
                documents.append(file.get_slice("document")[start:stop])
        return np.concatenate(tokens), np.concatenate(documents)

    def rows(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Return token and document of every activation row of a split, in the order of rows, each int32 (row,)."""
        tokens, documents = self.read(*self.split(split))
        kept = documents >= 0
        return tokens[kept], documents[kept]


def open_contexts(folder: Path) -> Contexts:
    """Open `data/activations/tokens/`."""
    return Contexts(folder, read_meta(folder / "meta.json", TOKENS, "extract"))


def open_layer(layer: Path, tokens: Path, model: dict[str, Any] | None = None) -> tuple[Activations, Contexts]:
    """Open the folder of a ``layer``'s activations, and that of the ``tokens`` which they belong to.

    ``model``: the facts about today's language model, where the stage reads it. Raises BadInput if the activations, or
    their contexts, come from another model or another text.
    """
    activations, contexts = open_activations(layer), open_contexts(tokens)
    model = model or activations.meta["model"]
    for folder, meta in ((activations.folder, activations.meta), (contexts.folder, contexts.meta)):
        if meta["model"] != model:
            raise BadInput(
                f"{folder} was extracted from {meta['model']['name']}, not from today's model; run extract again"
            )
    if activations.meta["corpus"] != contexts.meta["corpus"] or activations.rows != contexts.meta["rows"]:
        raise BadInput(f"{activations.folder} and {contexts.folder} do not come from one text; run extract again")
    return activations, contexts


def verify(folder: Path) -> int:
    """Hash every file that a folder's meta.json lists, and return their number.

    Raises BadInput, which names the file, for the first that is missing or differs.
    """
    is_layer = folder.name.isdecimal()
    meta = read_meta(folder / "meta.json", ROWS if is_layer else TOKENS, "extract")
    entries = meta.get("shards" if is_layer else "files", [])
    for entry in entries:
        if not (folder / entry["file"]).exists() or sha256(folder / entry["file"]) != entry["sha256"]:
            raise BadInput(f"{folder / entry['file']} does not have the hash that its meta.json says; extract it again")
    return len(entries)
