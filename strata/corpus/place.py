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
from strata.run.resume import places


def find(source: str, suffixes: Collection[str]) -> Path | None:
    """Find the file or folder that ``source`` names; None if it is no path but a hub name or the like.

    A relative path is looked for in the working directory, then in the main checkout: a queued experiment runs in a
    workspace without the user's untracked files. Raises BadInput where a source that looks like a path (one of
    ``suffixes``, or a leading `.`, `/` or `~`) does not exist.
    """
    try:
        if "\0" in source:
            raise ValueError("it holds the character NUL")
        for path in places(source):
            if path.exists():
                return path
    except (OSError, ValueError) as error:  # too long; NUL
        reason = error.strerror if isinstance(error, OSError) else str(error)
        shown = repr(source[:60]) + " …" * (len(source) > 60)
        raise BadInput(f"{shown} cannot be looked for as a file: {reason}; params.yaml names it as a source") from None

    if source.startswith((".", "/", "~")) or Path(source).suffix.lower() in suffixes:
        raise BadInput(f"{source} is missing; params.yaml names it as a source")
    return None


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``folder``, which replaces it if the block ends well and is removed if not."""
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
    """Yield a new, locked folder in ``parent``, which is removed at the end.

    Folders with the same ``prefix`` that nobody has locked were left by a process that was killed; they are removed
    first.
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
    """Lock a folder for this process; return the file descriptor that holds the lock.

    Returns None if another process has the lock. It ends when the descriptor is closed or the process ends.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _umask() -> int:
    """Return the process's umask, which can only be read by setting it."""
    umask = os.umask(0)
    os.umask(umask)
    return umask
