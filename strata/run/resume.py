"""A place for unfinished work, so that a killed stage goes on where it stopped and ends with the same bytes.

The place is `.scratch/<stage>-<hash>/` of the main checkout, outside DVC's outputs, which DVC deletes before each run.
The hash covers all that the result depends on: inputs, params and the parsed code, so that a changed comment does not
count.

Files that are kept there are sealed. A seal is an empty file `.sealed/<name>/<SHA-256>` beside the file `<name>`; it is
written before the file takes its name. A file whose hash is not that of its seal (it is cut, empty, changed, or put
there by somebody else) is reported in one line on stderr, deleted, and counts as missing, so that its part of the work
is done again:

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

A seal holds for one path: the file does not count as whole under another path. A file that is whole but unusable for
another reason is deleted by :func:`drop`.
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
TOLD = ".told"  # the user has been told that the folder it is in may be deleted


def main_root() -> Path:
    """Return the user's checkout, also inside the temporary workspace of a queued experiment, where DVC names it."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd())


def places(word: str) -> tuple[Path, Path]:
    """Return where the path ``word`` of a user may be: as it is named, and in the user's own checkout.

    A queued experiment of DVC runs in a workspace without the user's untracked files. `~` is the user's home. A name
    behind it that is no user's stays as it is, and nothing is there.
    """
    path = os.path.expanduser(word)  # noqa: PTH111 - that of Path raises where there is no such user
    return Path(path), main_root() / path


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

    The folder is locked while it is in use, and removed when the block ends well. After an error or a kill it stays,
    without the files that were not whole. If two queued experiments want the same folder, the second one waits for the
    first, and then does the work for itself.
    """
    key = hashlib.sha256(json.dumps([facts, code_hash()], sort_keys=True).encode()).hexdigest()[:16]
    folder = main_root() / ".scratch" / f"{stage}-{key}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    begins_anew = not folder.exists()
    lock = FileLock(folder.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        sys.stderr.write(f"{stage}: another process is running it on the same inputs; waiting for that one\n")
        lock.acquire()

    try:
        folder.mkdir(exist_ok=True)
        # A kill leaves the temporary files of `files.replacing`, which must not be delivered with the outputs.
        for unfinished in folder.rglob(".*.tmp"):
            unfinished.unlink()
        yield folder
        shutil.rmtree(folder)
        if begins_anew:
            _tell_of_others(folder, stage)
    finally:
        if folder.exists() and not any(folder.iterdir()):
            folder.rmdir()  # bad input was refused before anything was kept
        if not folder.exists():
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _tell_of_others(folder: Path, stage: str) -> None:
    """Say once, on stderr, of each folder of unfinished work of this stage that it was of no use, and takes disk."""
    for unusable in sorted(folder.parent.glob(f"{stage}-{'[0-9a-f]' * 16}")):
        # A folder that another process has locked is in use, and is not mentioned.
        with suppress(Timeout), FileLock(unusable.with_suffix(".lock"), timeout=0):
            if not (unusable / TOLD).exists():
                (unusable / TOLD).touch()
                name = unusable.relative_to(main_root())
                sys.stderr.write(
                    f"{stage}: {name} was not used: it is of other inputs, params or code, and may be deleted\n"
                )


@contextmanager
def sealing(path: Path) -> Iterator[Path]:
    """Yield a temporary path; at the end of the block, seal the file that was written there and name it ``path``."""
    with files.replacing(path) as temporary:
        yield temporary
        seal = _seal(path, files.sha256(temporary))
        seal.parent.mkdir(parents=True, exist_ok=True)
        seal.touch()
    _only(seal)


def keep_bytes(path: Path, content: bytes) -> None:
    """Keep ``content`` under ``path``, sealed."""
    with sealing(path) as temporary:
        temporary.write_bytes(content)


def keep_json(path: Path, value: Any) -> None:
    """Keep a value of strict JSON under ``path``, sealed."""
    keep_bytes(path, files.json_text(value).encode())


def keep_tensors(path: Path, tensors: dict[str, "Tensor"]) -> None:
    """Keep tensors on the CPU as a sealed safetensors file."""
    with sealing(path) as temporary:
        files.save_tensors(temporary, tensors)


def whole(path: Path) -> bool:
    """Say whether ``path`` holds what was sealed there. If it holds something else, report and delete that."""
    if not path.exists():
        return False
    if path.is_file() and (seal := _seal(path, files.sha256(path))).exists():
        _only(seal)
        return True
    drop(path, "is damaged")
    return False


def kept_bytes(path: Path) -> bytes | None:
    """Read the content of ``path``; None if no whole file is there."""
    return path.read_bytes() if whole(path) else None


def kept_json(path: Path) -> Any:
    """Read the JSON value of ``path``; None if no whole file is there."""
    content = kept_bytes(path)
    return None if content is None else json.loads(content)


def kept_tensors(path: Path, device: str = "cpu") -> dict[str, "Tensor"] | None:
    """Read the tensors of ``path`` to ``device``; None if no whole file is there."""
    from safetensors.torch import load_file  # imported here, because torch takes a second and not all stages use it

    return load_file(path, device) if whole(path) else None


def once_json(path: Path | None, make: Callable[[], Any]) -> Any:
    """Return what ``make`` returns, a value of strict JSON; keep it under ``path``, and read it there the next time.

    Without a ``path`` nothing is kept.
    """
    if path is not None and whole(path):
        return json.loads(path.read_bytes())
    value = make()
    if path is not None:
        keep_json(path, value)
    return value


def once_tensors(path: Path | None, make: Callable[[], dict[str, "Tensor"]]) -> dict[str, "Tensor"]:
    """Do the work of :func:`once_json` for tensors on the CPU."""
    kept = None if path is None else kept_tensors(path)
    if kept is not None:
        return kept
    tensors = make()
    if path is not None:
        keep_tensors(path, tensors)
    return tensors


def sealed_hash(path: Path) -> str:
    """Return the SHA-256 of a file that is :func:`whole`, without reading it again."""
    (seal,) = _seals(path)
    return seal.name


def drop(path: Path, why: str) -> None:
    """Delete what is kept under ``path``, and say so in a line on stderr.

    ``why`` completes the sentence "<path> …; its part is done again", for example "is damaged".
    """
    name = path.relative_to(main_root()) if path.is_relative_to(main_root()) else path
    sys.stderr.write(f"{door.module().rpartition('.')[2]}: {name} {why}; its part is done again\n")
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    for seal in _seals(path):
        seal.unlink()


def _seal(path: Path, sha256: str) -> Path:
    """Name the seal of a file with this hash."""
    return path.parent / SEALS / path.name / sha256


def _only(seal: Path) -> None:
    """Remove all other seals of the same path: those of earlier files, and of files that a kill kept from it."""
    for old_seal in seal.parent.iterdir():
        if old_seal != seal:
            old_seal.unlink()


def _seals(path: Path) -> list[Path]:
    """List the seals of a path."""
    return list((path.parent / SEALS / path.name).glob("*"))


def deliver(work: Path, target: Path, names: list[str]) -> None:
    """Move the finished folders ``names`` from ``work`` to ``target``, without seals; replace the old ones there."""
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (target / name).exists():
            shutil.rmtree(target / name)
        shutil.rmtree(work / name / SEALS, ignore_errors=True)
        shutil.move(work / name, target / name)
