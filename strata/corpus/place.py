"""Paths that a user wrote into params.yaml, and folders that appear whole or not at all."""

import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from strata.run.door import BadInput
from strata.run.files import FULL, to_disk
from strata.run.resume import main_root


def find(source: str, suffixes: Collection[str]) -> Path | None:
    """The file or folder that ``source`` names; None if it is no path but a hub name or the like.

    A relative path is looked for here, then in the main checkout: a queued experiment runs in a workspace without the
    user's untracked files. What looks like a path (one of ``suffixes``, a leading `.`, `/` or `~`) must be there.
    """
    try:
        if "\0" in source:
            raise ValueError("it holds the character NUL")
        for path in (Path(source).expanduser(), main_root() / source):
            if path.exists():
                return path
    except (OSError, RuntimeError, ValueError) as error:  # too long; no such user's home (~name); NUL
        said = error.strerror if isinstance(error, OSError) else str(error)
        shown = repr(source[:60]) + " …" * (len(source) > 60)
        raise BadInput(f"{shown} cannot be looked for as a file: {said}; params.yaml names it as a source") from None
    if source.startswith((".", "/", "~")) or Path(source).suffix.lower() in suffixes:
        raise BadInput(f"{source} is missing; params.yaml names it as a source")
    return None


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``folder``; it takes that name if the block ends well, else it is removed."""
    with temporary_folder(folder.parent, f".{folder.name}-") as temporary:
        try:
            yield temporary
            for path in [*temporary.rglob("*"), temporary]:
                to_disk(path)
            if folder.exists():
                shutil.rmtree(folder)
            temporary.replace(folder)
        except OSError as error:
            if error.errno in FULL:
                raise BadInput(f"the disk is full: {folder} could not be written ({error.strerror})") from error
            raise


@contextmanager
def temporary_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Yield a new folder in ``parent``, which is removed at the end.

    It is locked. One of that ``prefix`` without a lock was left by a process that was killed: it is removed first.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for path in sorted(parent.glob(f"{prefix}*")):
        if path.is_dir() and (lock := _locked(path)) is not None:
            shutil.rmtree(path)
            os.close(lock)
            sys.stderr.write(f"fetch: {path} was left by one that was killed, and is removed\n")

    temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    lock = _locked(temporary)
    try:
        temporary.chmod(0o777 & ~_umask())  # mkdtemp gives 0700
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _locked(folder: Path) -> int | None:
    """Lock a folder for this process, until the number that is returned is closed or the process ends; None where
    another holds it."""
    number = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(number)
        return None
    return number


def _umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now
