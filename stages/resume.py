"""A place for unfinished work, so that a killed stage goes on where it was and ends with the same bytes.

It lies outside DVC's outputs (DVC deletes those before each run) in `.scratch/<stage>-<hash>/` of the main checkout.
The hash covers all that the result depends on: inputs, params and the parsed code, so that a comment does not count.
"""

import ast
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

ROOT = Path(__file__).resolve().parents[1]


def main_root() -> Path:
    """The user's checkout, also from inside the temporary workspace of a queued experiment (DVC tells)."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd())


def code_hash() -> str:
    """Hash the syntax trees of this project's modules that are loaded now."""
    digest = hashlib.sha256()
    for name in sorted(name for name in sys.modules if name.partition(".")[0] in ("stages", "src")):
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


def deliver(work: Path, target: Path, names: list[str]) -> None:
    """Move finished folders out of ``work`` into ``target``, taking the place of what was there."""
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (target / name).exists():
            shutil.rmtree(target / name)
        shutil.move(work / name, target / name)
