"""A place for unfinished work, so that a killed stage goes on where it was and ends with the same bytes.

It lies outside DVC's outputs (DVC deletes those before each run) in `.scratch/<stage>-<hash>/` of the main checkout.
The hash covers all that the result depends on: inputs, params and the parsed code, so that a comment does not count.

What is kept there is sealed. A seal is an empty file `.sealed/<name>/<SHA-256>` beside the file `<name>`;
it is there before the file takes its name. What does not have the hash of its seal (cut, empty, flipped, put there by
somebody else) is told in one line on stderr, deleted, and counts as not there, so that its part is done again:

    with resume.scratch("stage-9", facts) as work:
        result = resume.kept_json(work / "42.json")         # or kept_bytes, or kept_tensors(path, device)
        if result is None:
            result = compute(42)
            resume.keep_json(work / "42.json", result)      # or keep_bytes, keep_tensors; any of them may overwrite

        with resume.sealing(work / "large.bin") as temporary:    # a large file, written bit by bit under another name …
            stream_into(temporary)
        if resume.whole(work / "large.bin"):                     # … hashed in constant memory, then read in place
            read(work / "large.bin")

:func:`once_json` and :func:`once_tensors` are the first four lines as one call.

A file is sealed for its place: the content of another place is foreign there. What is whole and yet not what is asked
for goes by :func:`drop`.
"""

import ast
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from strata.run import door, files

if TYPE_CHECKING:
    from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
SEALS = ".sealed"


def main_root() -> Path:
    """The user's checkout, also from inside the temporary workspace of a queued experiment (DVC tells)."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd())


def code_hash() -> str:
    """Hash the syntax trees of this project's modules that are loaded now."""
    digest = hashlib.sha256()
    for name in sorted(name for name in sys.modules if name.partition(".")[0] in ("strata", "stages", "src")):
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).is_relative_to(ROOT):
            digest.update(ast.dump(ast.parse(Path(file).read_text(encoding="utf-8"))).encode())
    return digest.hexdigest()


@contextmanager
def scratch(stage: str, facts: dict[str, Any]) -> Iterator[Path]:
    """Yield the folder of unfinished work that belongs to ``facts`` (plain JSON values) and today's code.

    It is locked while in use and removed when the block ends well; after an error or a kill it stays, but for files
    that were not whole. Two queued experiments may want the same: the second waits, then does it for itself.
    """
    key = hashlib.sha256(json.dumps([facts, code_hash()], sort_keys=True).encode()).hexdigest()[:16]
    folder = main_root() / ".scratch" / f"{stage}-{key}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not folder.exists():
        _tell_of_others(folder, stage)
    lock = FileLock(folder.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        sys.stderr.write(f"{stage}: another process is running it on the same inputs; waiting for that one\n")
        lock.acquire()
    try:
        folder.mkdir(exist_ok=True)
        for half in folder.rglob(".*.tmp"):  # what `files.replacing` had begun; delivered, it would change the bytes
            half.unlink()
        yield folder
        shutil.rmtree(folder)
    finally:
        if not folder.exists():
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _tell_of_others(folder: Path, stage: str) -> None:
    """Say that there is unfinished work which cannot be used, so that nobody waits for it to go on."""
    for other in sorted(folder.parent.glob(f"{stage}-{'[0-9a-f]' * 16}")):
        with suppress(Timeout), FileLock(other.with_suffix(".lock"), timeout=0):
            name = other.relative_to(main_root())
            sys.stderr.write(f"{stage}: starts anew; {name} is of other inputs, params or code, and may be deleted\n")


@contextmanager
def sealing(path: Path) -> Iterator[Path]:
    """Yield a temporary path; what is written there by the end of the block is sealed and takes the name ``path``."""
    with files.replacing(path) as temporary:
        yield temporary
        seal = _seal(path, files.sha256(temporary))
        seal.parent.mkdir(parents=True, exist_ok=True)
        seal.touch()
    _only(seal)


def keep_bytes(path: Path, content: bytes) -> None:
    """Keep ``content`` under ``path``."""
    with sealing(path) as temporary:
        temporary.write_bytes(content)


def keep_json(path: Path, value: Any) -> None:
    """Keep what strict JSON can say."""
    keep_bytes(path, files.json_text(value).encode())


def keep_tensors(path: Path, tensors: dict[str, "Tensor"]) -> None:
    """Keep tensors, which are on the CPU, as a safetensors file."""
    with sealing(path) as temporary:
        files.save_tensors(temporary, tensors)


def whole(path: Path) -> bool:
    """Whether ``path`` holds what was sealed there; if it holds something else, that is told and deleted."""
    if not path.exists():
        return False
    if path.is_file() and (seal := _seal(path, files.sha256(path))).exists():
        _only(seal)
        return True
    drop(path, "is damaged")
    return False


def kept_bytes(path: Path) -> bytes | None:
    """The content of ``path``; None if nothing whole is there."""
    return path.read_bytes() if whole(path) else None


def kept_json(path: Path) -> Any:
    """The value of ``path``; None if nothing whole is there."""
    content = kept_bytes(path)
    return None if content is None else json.loads(content)


def kept_tensors(path: Path, device: str = "cpu") -> dict[str, "Tensor"] | None:
    """The tensors of ``path`` on ``device``; None if nothing whole is there."""
    from safetensors.torch import load_file  # torch takes a second, which the stages without tensors do without

    return load_file(path, device) if whole(path) else None


def once_json(path: Path | None, make: Callable[[], Any]) -> Any:
    """What ``make`` gives, a value of strict JSON: kept under ``path``, and not made again where it is whole there.

    Without a ``path`` nothing is kept."""
    if path is not None and whole(path):
        return json.loads(path.read_bytes())
    value = make()
    if path is not None:
        keep_json(path, value)
    return value


def once_tensors(path: Path | None, make: Callable[[], dict[str, "Tensor"]]) -> dict[str, "Tensor"]:
    """The same of tensors on the CPU."""
    kept = None if path is None else kept_tensors(path)
    if kept is not None:
        return kept
    tensors = make()
    if path is not None:
        keep_tensors(path, tensors)
    return tensors


def sealed_hash(path: Path) -> str:
    """The SHA-256 of a file that is :func:`whole`, without reading it again."""
    (seal,) = _seals(path)
    return seal.name


def drop(path: Path, why: str) -> None:
    """Delete what is kept under ``path``, and say so in a line: what is kept there ``why``, its part is done again."""
    name = path.relative_to(main_root()) if path.is_relative_to(main_root()) else path
    sys.stderr.write(f"{door.module().rpartition('.')[2]}: {name} {why}; its part is done again\n")
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    for seal in _seals(path):
        seal.unlink()


def _seal(path: Path, sha256: str) -> Path:
    return path.parent / SEALS / path.name / sha256


def _only(seal: Path) -> None:
    """Remove the seals of what stood there before, or was to stand there when a kill came."""
    for other in seal.parent.iterdir():
        if other != seal:
            other.unlink()


def _seals(path: Path) -> list[Path]:
    return list((path.parent / SEALS / path.name).glob("*"))


def deliver(work: Path, target: Path, names: list[str]) -> None:
    """Move finished folders out of ``work`` into ``target``, without seals, taking the place of what was there."""
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (target / name).exists():
            shutil.rmtree(target / name)
        shutil.rmtree(work / name / SEALS, ignore_errors=True)
        shutil.move(work / name, target / name)
