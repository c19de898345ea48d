"""Paths that a user wrote into params.yaml, and folders that appear whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.door import BadInput
from stages.files import FULL
from stages.resume import main_root


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
    except (
        OSError,
        RuntimeError,
        ValueError,
    ) as error:  # too long; no such user's home (~name); NUL or half a character
        said = error.strerror if isinstance(error, OSError) else str(error)
        shown = repr(source[:60]) + " …" * (len(source) > 60)
        raise BadInput(f"{shown} cannot be looked for as a file: {said}; params.yaml names it as a source") from None
    if source.startswith((".", "/", "~")) or Path(source).suffix.lower() in suffixes:
        raise BadInput(f"{source} is missing; params.yaml names it as a source")
    return None


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``folder``; it takes that name if the block ends well, else it is removed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        temporary.chmod(0o777 & ~_umask())  # mkdtemp gives 0700
        yield temporary
        if folder.exists():
            shutil.rmtree(folder)
        temporary.replace(folder)
    except OSError as error:
        if error.errno in FULL:
            raise BadInput(f"the disk is full: {folder} could not be written ({error.strerror})") from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now
