"""Rows that were made elsewhere: a file of states, an array, an iterator of shards. They go through a file on disk, so
that there may be more of them than memory holds."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from strata import defaults
from strata.corpus import corpus
from strata.corpus.read import OWN_VECTORS, SPLITS
from strata.extraction import contexts, extract
from strata.extraction import documents as of_documents
from strata.extraction.knobs import Extract
from strata.formats import state
from strata.front.activations import LayerActivations, home_of, kept
from strata.run import door
from strata.run.door import BadInput
from strata.run.files import need_disk
from strata.run.params import Hook
from strata.run.progress import Progress
from strata.tables import arrays

BLOCK = 8192  # rows in memory at a time
STRETCHES = 100  # at least so many stretches of neighbouring rows are shared among the splits
LONGEST = 1024  # rows of a stretch at the most
SUFFIXES = (".npy", ".npz", ".safetensors", ".parquet", *state.SUFFIXES)
ROWS = f"it must be (rows, numbers): an array, a tensor, a file ({', '.join(SUFFIXES)}), or any number of these"
Floats = NDArray[np.float32]


def store(
    source: Any,
    layer: int | None = None,
    hook: Hook = "resid_post",
    key: str | None = None,
    validation: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    folder: str | Path | None = None,
) -> LayerActivations:
    """Keep rows of your own as shards on disk, for :func:`strata.train`; memory holds a few thousand rows at a time.

    ``source``: (rows, numbers) as an array or tensor; a file of them (.npy, .npz, .safetensors, .parquet, .pt); or
    anything that gives such arrays, tensors or files one by one: a list of shards, a generator, a DataLoader. ``key``:
    the array or column of a file that holds several; else it is the only one of two dimensions, or `vector`.

    ``layer`` and ``hook``: where in a language model the rows are from; they are kept in bfloat16, as
    :func:`strata.activations` keeps them. Without a layer they are vectors, and stay float32. ``validation`` and
    ``test``: shares that no training sees: stretches of up to 1024 rows that follow one another, drawn by ``seed``, so
    that few texts stand on both sides. ``folder``: where the shards are kept; a temporary one unless it is named.

    Raises BadInput for rows that are no numbers, not equally long, not finite or too few.

    >>> rows = strata.store("layer_6_states.npy", layer=6)                                # doctest: +SKIP
    >>> rows = strata.store(sorted(Path("shards").glob("*.npy")), layer=6)                # doctest: +SKIP
    """
    number = of_documents.LAYER if layer is None else door.whole("layer", layer, 0)
    door.choice("hook", hook, ("resid_pre", "resid_post", "mlp_out", "attn_out"))
    for name, share in (("validation", validation), ("test", test)):
        door.finite(name, share)
    if not 0 < validation < 1 or not 0 < test < 1 or validation + test >= 1:
        raise BadInput(f"validation is {validation} and test {test}; they must be shares above 0, together below 1")
    door.whole("seed", seed, 0)
    home, root = home_of(folder)

    with TemporaryDirectory(prefix=".rows-", dir=root) as passing:
        matrix, digest = _matrix(source, key, Path(passing) / "rows")
        count, width = matrix.shape
        need_disk(root, count * width * (4 if layer is None else 2), "rows", "fewer rows")
        splits = _splits(count, validation, test, seed)
        settings = defaults.knobs("extract", Extract, {"tokens": count, "dtype": "float32"})

        def write(_corpus: Any, _counts: Any, target: Path) -> dict[str, Any]:
            rows = {split: (([row], [row]) for row in splits[split].tolist()) for split in SPLITS}
            return contexts.write(rows, of_documents.PLAN, target, count)

        def forward(tokens: NDArray[Any], _kept: Tensor, first: int) -> dict[int, Tensor]:
            rows = torch.from_numpy(matrix[tokens[:, 0]].astype(np.float32))
            return {number: rows if layer is None else extract.stored(rows, "rows", first, settings)}

        read = of_documents.own_vectors(matrix, settings, lambda row: f"row {row}")  # checks the norms
        facts = {"hook": OWN_VECTORS if layer is None else hook, "forward": "float32"}
        read = replace(read, facts=facts, write=write, forward=forward)
        model = {"name": "rows", "revision": None, "fingerprint": digest}
        facts = {"model": model, "corpus": digest, **facts}
        return kept(read, [number], settings.shard_rows, facts, {"splits": {}}, root, None, home)[number]


def _splits(count: int, validation: float, test: float, seed: int) -> dict[str, NDArray[np.int64]]:
    """The rows of each split, ascending: stretches of neighbouring rows, drawn by ``seed``."""
    if count < 6:
        raise BadInput(f"{count} rows are too few: training, validation and test need two each")
    length = int(np.clip(count // STRETCHES, 2 if count < 2 * STRETCHES else 1, LONGEST))
    stretches = -(-count // length)
    order = np.random.default_rng(seed).permutation(stretches)
    place = np.empty(stretches, np.int64)
    place[order] = corpus.split(np.zeros(stretches, np.int64), validation, test)
    of_row = np.repeat(place, length)[:count]
    return {split: np.flatnonzero(of_row == number) for number, split in enumerate(SPLITS)}


def _matrix(source: Any, key: str | None, spool: Path) -> tuple[NDArray[Any], str]:
    """All rows as one array, and a hash of them. What is no array yet, in memory or mapped, is written to ``spool``."""
    whole = source.detach().cpu().float().numpy() if isinstance(source, Tensor) else source
    if isinstance(source, str | Path) and Path(source).suffix == ".npy" and Path(source).is_file():
        whole = arrays.mapped(Path(source))
    is_whole = isinstance(whole, np.ndarray)

    digest, count, width = hashlib.sha256(), 0, 0
    with spool.open("wb") as file, Progress("read", "rows") as progress:
        for block in _blocks(whole, key, "source"):
            width = width or block.shape[1]
            if block.shape[1] != width:
                raise BadInput(f"rows from number {count} on have {block.shape[1]} numbers, but those before {width}")
            if not np.isfinite(block).all():
                bad = int(np.flatnonzero(~np.isfinite(block).all(1))[0])
                raise BadInput(f"row {count + bad} holds NaN or infinity; leave it out")
            digest.update(np.ascontiguousarray(block).data)
            if not is_whole:
                file.write(np.ascontiguousarray(block).data)
            count += len(block)
            progress.update(len(block))
    if not count:
        raise BadInput("the source gives no rows")
    if is_whole:
        return whole, digest.hexdigest()
    return np.memmap(spool, np.float32, "r", shape=(count, width)), digest.hexdigest()


def _blocks(source: Any, key: str | None, name: str) -> Iterator[Floats]:
    """The rows of a source in blocks of (rows, width) float32, whatever gives them."""
    if isinstance(source, str | Path):
        yield from _file(Path(source), key)
    elif isinstance(source, np.ndarray | Tensor):
        numbers = source.dtype.kind in "fiu" if isinstance(source, np.ndarray) else source.dtype.is_floating_point
        if source.ndim != 2 or not numbers:
            raise BadInput(f"{name} is an array of {source.dtype} {tuple(source.shape)}; {ROWS}")
        for first in range(0, len(source), BLOCK):
            block = source[first : first + BLOCK]
            block = block.detach().float().cpu().numpy() if isinstance(block, Tensor) else block
            with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused as that
                yield block.astype(np.float32)
    elif isinstance(source, Iterable) and not isinstance(source, bytes | Mapping | pd.DataFrame):
        for number, part in enumerate(source):
            yield from _blocks(part, key, f"{name}[{number}]")
    else:
        raise BadInput(f"{name} is {door.a_thing(source)}; {ROWS}")


def _file(path: Path, key: str | None) -> Iterator[Floats]:
    """The rows of a file in blocks."""
    if not path.is_file():
        raise BadInput(f"{path} is missing; {ROWS}")
    readers = {".npy": _npy, ".npz": _npz, ".safetensors": _safetensors, ".parquet": _parquet}
    reader = readers.get(path.suffix, _state if path.suffix in state.SUFFIXES else None)
    if reader is None:
        raise BadInput(f"{path} is no file of rows that is known here; {ROWS}")
    yield from reader(path, key)


def _npy(path: Path, key: str | None) -> Iterator[Floats]:
    return _blocks(arrays.mapped(path), None, str(path))


def _npz(path: Path, key: str | None) -> Iterator[Floats]:
    with arrays.archive(path) as file:
        name = _named(path, {name: len(file.header(name).shape) for name in file.names}, key)
        rows = iter(file.rows(name))
        for block in iter(lambda: list(islice(rows, BLOCK)), []):
            yield from _blocks(np.stack(block), None, f"{path}: {name}")


def _safetensors(path: Path, key: str | None) -> Iterator[Floats]:
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            tensor = slices[_named(path, {name: len(each.get_shape()) for name, each in slices.items()}, key)]
            for first in range(0, tensor.get_shape()[0], BLOCK):
                yield from _blocks(tensor[first : first + BLOCK], None, str(path))
    except OSError as error:
        raise BadInput(f"{path} is no file that can be read: {error}") from None
    except SafetensorError as error:
        raise BadInput(f"{path} is damaged: {error}") from None


def _parquet(path: Path, key: str | None) -> Iterator[Floats]:
    try:
        with pq.ParquetFile(path) as file:
            names, name = file.schema_arrow.names, key or "vector"
            if name not in names:
                raise BadInput(f"{path} has no column {name!r}; it has {', '.join(names)}: name one as key")
            for batch in file.iter_batches(BLOCK, columns=[name]):
                column = batch.column(0)
                holds_lists = pa.types.is_nested(column.type) and column.null_count == 0
                rows = column.to_numpy(zero_copy_only=False) if holds_lists else []
                if not holds_lists or len({len(row) for row in rows}) > 1:
                    raise BadInput(f"{path}: the column {name!r} does not hold equally long lists of numbers")
                yield from _blocks(np.stack(list(rows)), None, f"{path}: {name}")
    except (OSError, pa.ArrowException) as error:
        raise BadInput(f"{path} cannot be read as Parquet: {' '.join(str(error).split())}") from None


def _state(path: Path, key: str | None) -> Iterator[Floats]:
    tensors = {name: value for name, value in state.read(path).items() if isinstance(value, Tensor)}
    return _blocks(tensors[_named(path, {name: value.ndim for name, value in tensors.items()}, key)], None, str(path))


def _named(path: Path, dimensions: dict[str, int], key: str | None) -> str:
    """The array ``key`` of a file, or its only one of two dimensions."""
    listed = ", ".join(dimensions) or "none"
    if key is not None and key not in dimensions:
        raise BadInput(f"{path} has no array {key!r}; it has {listed}")
    matrices = [name for name, count in dimensions.items() if count == 2]
    if key is None and len(matrices) != 1:
        raise BadInput(f"{path} holds {len(matrices)} arrays of (rows, numbers), not one; of {listed} name one as key")
    return key or matrices[0]
