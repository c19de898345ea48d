"""Files that are either whole or absent: they are written under a temporary name, synced to the disk, then renamed.

A folder of outputs is complete when its ``meta.json`` is there, because that is written last. The rename also matters
to DVC: where its cache consists of links, writing in place would change the cached object itself.
"""

import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from strata.run.door import BadInput

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from torch import Tensor

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # the disk, the user's quota or the size of a file is used up
LAST = ("meta.json", "cfg.json")  # the file that is written last says that a folder is complete
ROW_GROUP = 4096  # rows of a Parquet file that are read together, also where only one latent is wanted
WRITERS = 8  # files that are synced at the same time: 300 small ones take 0.1 s instead of 1.2


def absolute(path: Path) -> Path:
    """Return a path from the root, without `..`. Links stay: what is beside a link is not beside what it leads to."""
    return Path(os.path.normpath(path.absolute()))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; move it there if the block ends well, remove it if not.

    The bytes are on the disk before the file takes its name: after a power cut there is the old file or the new one,
    never an empty one. Before a file of ``LAST`` takes its name, the names of the folder's other files are on the disk
    too. Raises BadInput where the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        to_disk(temporary)
        if path.name in LAST:
            to_disk(path.parent)
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in FULL:
            raise BadInput(f"the disk is full: {path} could not be written ({error.strerror})") from error
        raise


def to_disk(path: Path) -> None:
    """Wait until the bytes of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 with Unix line ends, so that the bytes do not depend on the platform."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)


def write_texts(texts: Iterable[tuple[Path, str]]) -> None:
    """Write many small files, several at a time, because each one waits for the disk.

    If one fails, the others are written all the same, and then the error of the first that failed is raised.
    """
    with ThreadPoolExecutor(WRITERS) as pool:
        writes = [pool.submit(write_text, path, text) for path, text in texts]
    for write in writes:
        write.result()  # raises what the write raised


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes, of a picture for example."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON. Raises ValueError for NaN and infinity, which other readers refuse."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """Return the text that :func:`write_json` writes."""
    return json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def write_skipped(folder: Path, report: Path, why: str | None = None) -> None:
    """Say in a stage's outputs, and on stderr, that it did not run.

    ``report``: the file of the stage's report; its folder has the name of the stage. ``why``: the reason, if it is not
    `run: false` in params.yaml.
    """
    for path in (folder / "meta.json", report):
        write_json(path, {"skipped": True} | ({"why": why} if why else {}))
    stage = report.parent.name
    sys.stderr.write(f"{stage}: skipped, {why or 'as params.yaml says'}\n")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises BadInput, with its name, where it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{path} is missing; run the stage that writes it (`dvc repro`)") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path} is not valid JSON: {error}") from None


def read_meta(path: Path, keys: Mapping[str, type], stage: str) -> dict[str, Any]:
    """Read a meta.json that ``stage`` wrote.

    Raises BadInput unless it is an object that says "skipped", or has all ``keys`` with values of these types.
    """
    meta = read_json(path)
    if not isinstance(meta, dict):
        raise BadInput(f"{path} is no object, so {stage} did not write it; {again(stage)}")

    wrong = next((key for key, kind in keys.items() if not isinstance(meta.get(key), kind)), None)
    if wrong and not meta.get("skipped"):
        raise BadInput(f"{path}: {wrong} is {meta.get(wrong)!r}, which {stage} does not write; {again(stage)}")
    return meta


def again(stage: str) -> str:
    """Say how to make a stage's outputs anew, for messages."""
    return f"run {stage} again (`dvc repro -f -s {stage}`)"


def write_tensors(path: Path, tensors: dict[str, "Tensor"]) -> None:
    """Write a safetensors file."""
    with replacing(path) as temporary:
        save_tensors(temporary, tensors)


def save_tensors(temporary: Path, tensors: dict[str, "Tensor"], facts: dict[str, str] | None = None) -> None:
    """Write a safetensors file in place, so ``temporary`` must be a temporary path, as of :func:`replacing`.

    ``facts``: one entry of header metadata. Two or more are written by safetensors in random order, so that the bytes
    would not repeat.
    """
    from safetensors.torch import save_file  # imported here, because torch takes a second and not all stages use it

    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, facts)
    except Exception as error:  # safetensors wraps the system's error in its own, without the number
        if any(word in str(error) for word in ("No space left", "File too large", "Disk quota")):
            raise OSError(errno.ENOSPC, str(error)) from error
        raise
    temporary.chmod(0o644)  # safetensors leaves 0600, which a shared DVC cache could not read


def write_array(path: Path, array: "np.ndarray") -> None:
    """Write a `.npy` file."""
    import numpy as np

    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, array)


def table(columns: dict[str, Any], schema: "pa.Schema") -> "pa.Table":
    """Make a table of ``columns``, in the order and types of ``schema``; NaN becomes null.

    Each field of ``schema`` needs a column. Columns that it does not name are left out.
    """
    import numpy as np
    import pyarrow as pa

    arrays = []
    for field in schema:
        column = columns[field.name]
        if isinstance(column, np.ndarray) and column.ndim == 2:
            column = list(column)  # a column of lists: pyarrow takes no matrices
        array = column if isinstance(column, pa.Array) else pa.array(column, from_pandas=True)
        arrays.append(array.cast(field.type))  # pyright: ignore[reportAttributeAccessIssue]
    return pa.Table.from_arrays(arrays, schema=schema)


@contextmanager
def writing_table(path: Path, schema: "pa.Schema") -> Iterator["pq.ParquetWriter"]:
    """Open a Parquet file, for tables that are written one after the other. Each one starts a new row group."""
    import pyarrow.parquet as pq

    with replacing(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        yield writer


def write_table(path: Path, columns: dict[str, Any], schema: "pa.Schema") -> None:
    """Write a table that fits in memory as a Parquet file."""
    with writing_table(path, schema) as writer:
        writer.write_table(table(columns, schema), ROW_GROUP)


def sha256(path: Path) -> str:
    """Hash a file of any size in constant memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hashes(folder: Path) -> dict[str, str]:
    """Hash the files of a folder, name -> SHA-256, for its meta.json, which is not among them."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != "meta.json")
    return {name: sha256(folder / name) for name in names}


def check_hash(folder: Path, name: str, noted: Mapping[str, str], stage: str) -> None:
    """Check one file as :func:`check_hashes` does. ``noted``: name -> SHA-256, as of :func:`hashes`.

    A file that is not in ``noted`` is not checked, nor need it be there. Raises BadInput if ``noted`` is no mapping.
    """
    if not isinstance(noted, Mapping):
        raise BadInput(
            f"{folder / 'meta.json'}: files has no hashes, so {stage} of today did not write it; {again(stage)}"
        )
    check_hashes(folder, [{"file": name, "sha256": noted[name]}] if name in noted else [], stage)


def check_hashes(folder: Path, listed: Sequence[Mapping[str, Any]], stage: str) -> None:
    """Refuse the first file of ``folder`` that is missing, or is not as ``stage`` left it.

    ``listed``: entries with the keys file and sha256. An entry without sha256, which was made by hand, is not checked.
    Several files are hashed at the same time. A file that this process has checked already is hashed again only if it
    has changed since.
    """
    entries = [entry for entry in listed if "sha256" in entry]
    unchecked = [entry for entry in entries if _stamp(folder / entry["file"], entry, stage) not in _checked]
    if not unchecked:
        return

    with ThreadPoolExecutor(min(len(unchecked), os.cpu_count() or 1)) as pool:  # hashing does not block other threads
        actual_hashes = pool.map(lambda entry: sha256(folder / entry["file"]), unchecked)
    for entry, actual in zip(unchecked, actual_hashes, strict=True):
        path = folder / entry["file"]
        if actual != entry["sha256"]:
            raise BadInput(f"{path} does not have the hash that was noted when it was written; {again(stage)}")
        _checked.add(_stamp(path, entry, stage))


_checked: set[tuple[str | int, ...]] = set()  # stamps of the files that had the right hash


def _stamp(path: Path, entry: Mapping[str, Any], stage: str) -> tuple[str | int, ...]:
    """Return a file's path, the hash that it should have, and numbers that change with its content.

    Raises BadInput if the file is missing.
    """
    if not path.is_file():
        raise BadInput(f"{path} is missing; {again(stage)}")
    stat = path.stat()
    return str(path.resolve()), entry["sha256"], stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def need_disk(folder: Path, needed: int, what: str, fewer: str = "fewer tokens or layers") -> None:
    """Refuse to start work that would fill the disk of ``folder``, which need not exist yet.

    ``needed``: bytes. ``what`` names the work in the message, ``fewer`` what the user may ask for instead.
    """
    existing = next(parent for parent in [folder, *folder.resolve().parents] if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise BadInput(
            f"{what} needs {needed / 1e9:.2f} GB of disk in {folder}, and {free / 1e9:.2f} GB are free; "
            f"free some, or ask for {fewer}"
        )
