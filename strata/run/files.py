"""Files that are either whole or absent: written under a temporary name, brought to the disk, then renamed.

A directory artifact is complete when its ``meta.json`` is there, because that is written last. The rename also
matters to DVC: with a linked cache, writing in place would change the cached object itself.
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
    from torch import Tensor

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
LAST = ("meta.json", "cfg.json")  # what says that a folder is complete
WRITERS = 8  # files that wait for the disk at once: 300 small ones take 0.1 s instead of 1.2


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; move it there if the block ends well, remove it if not.

    The bytes are on the disk before the file takes its name: after a power cut there is the old file or the new one,
    never an empty one. Before a file of ``LAST`` takes its name, the names of the folder's other files are there, too.
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
    """Wait until the disk has a file's bytes, or a folder's names."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 with Unix line ends, so that the bytes do not depend on the platform."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)


def write_texts(texts: Iterable[tuple[Path, str]]) -> None:
    """Write many small files, several at a time, because each waits for the disk."""
    with ThreadPoolExecutor(WRITERS) as pool:
        waiting = [pool.submit(write_text, path, text) for path, text in texts]
    for written in waiting:
        written.result()


def write_bytes(path: Path, content: bytes) -> None:
    """Write what is there already as bytes, a picture."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON: NaN and infinity are refused, because no other reader takes them."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """What :func:`write_json` writes."""
    return json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def write_skipped(folder: Path, report: Path, why: str | None = None) -> None:
    """Say in a stage's outputs, and on the screen, that it did not run. ``why``: if not because params.yaml says so."""
    for path in (folder / "meta.json", report):
        write_json(path, {"skipped": True} | ({"why": why} if why else {}))
    stage = report.parent.name
    sys.stderr.write(f"{stage}: skipped, {why or 'as params.yaml says'}\n")


def read_json(path: Path) -> Any:
    """Read JSON, or say which file is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{path} is missing; run the stage that writes it (`dvc repro`)") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path} is not valid JSON: {error}") from None


def read_meta(path: Path, keys: Mapping[str, type], stage: str) -> dict[str, Any]:
    """Read a meta.json that ``stage`` wrote: an object with ``keys`` of these types, or one that says "skipped"."""
    meta = read_json(path)
    if not isinstance(meta, dict):
        raise BadInput(f"{path} is no object, so {stage} did not write it; {again(stage)}")
    wrong = next((key for key, kind in keys.items() if not isinstance(meta.get(key), kind)), None)
    if wrong and not meta.get("skipped"):
        raise BadInput(f"{path}: {wrong} is {meta.get(wrong)!r}, which {stage} does not write; {again(stage)}")
    return meta


def again(stage: str) -> str:
    """How to make a stage's outputs anew."""
    return f"run {stage} again (`dvc repro -f -s {stage}`)"


def write_tensors(path: Path, tensors: dict[str, "Tensor"]) -> None:
    """Write a safetensors file."""
    with replacing(path) as temporary:
        save_tensors(temporary, tensors)


def save_tensors(temporary: Path, tensors: dict[str, "Tensor"], facts: dict[str, str] | None = None) -> None:
    """Write a safetensors file in place, which only a temporary path can take.

    ``facts``: one entry of header metadata; with two or more, safetensors orders them at random, and the bytes would
    not repeat.
    """
    from safetensors.torch import save_file  # torch takes a second, which the stages without tensors do without

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


def sha256(path: Path) -> str:
    """Hash a file of any size in constant memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hashes(folder: Path) -> dict[str, str]:
    """The files of a folder and their SHA-256, as its meta.json notes them before it is written."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != "meta.json")
    return {name: sha256(folder / name) for name in names}


def check_hash(folder: Path, name: str, noted: Mapping[str, str], stage: str) -> None:
    """The same as :func:`check_hashes` for one file, by what :func:`hashes` gave."""
    if not isinstance(noted, Mapping):
        raise BadInput(
            f"{folder / 'meta.json'}: files has no hashes, so {stage} of today did not write it; {again(stage)}"
        )
    check_hashes(folder, [{"file": name, "sha256": noted[name]}] if name in noted else [], stage)


def check_hashes(folder: Path, listed: Sequence[Mapping[str, Any]], stage: str) -> None:
    """Raise BadInput for the first file of ``folder`` that is not as ``stage`` left it: each of ``listed`` has the
    keys file and, unless it was made by hand, sha256.

    Several are hashed at once, each the first time that this process meets it as it stands now.
    """
    noted = [entry for entry in listed if "sha256" in entry]
    unknown = [entry for entry in noted if _as_it_stands(folder / entry["file"], entry, stage) not in _right]
    if not unknown:
        return
    with ThreadPoolExecutor(min(len(unknown), os.cpu_count() or 1)) as pool:  # hashing leaves other threads alone
        hashes = pool.map(lambda entry: sha256(folder / entry["file"]), unknown)
    for entry, found in zip(unknown, hashes, strict=True):
        path = folder / entry["file"]
        if found != entry["sha256"]:
            raise BadInput(f"{path} does not have the hash that was noted when it was written; {again(stage)}")
        _right.add(_as_it_stands(path, entry, stage))


_right: set[tuple[str | int, ...]] = set()  # files as they stood when they had the right hash


def _as_it_stands(path: Path, entry: Mapping[str, Any], stage: str) -> tuple[str | int, ...]:
    """A file's place, the hash that it should have, and what changes with its content; BadInput if it is missing."""
    if not path.is_file():
        raise BadInput(f"{path} is missing; {again(stage)}")
    now = path.stat()
    return str(path.resolve()), entry["sha256"], now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns


def need_disk(folder: Path, needed: int, what: str, fewer: str = "fewer tokens or layers") -> None:
    """Refuse to start what would fill the disk that holds ``folder`` (``needed`` in bytes). ``fewer``: what to ask
    for instead."""
    there = next(parent for parent in [folder, *folder.resolve().parents] if parent.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise BadInput(
            f"{what} needs {needed / 1e9:.2f} GB of disk in {folder}, and {free / 1e9:.2f} GB are free; "
            f"free some, or ask for {fewer}"
        )
