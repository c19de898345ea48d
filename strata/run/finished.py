"""Outputs of a finished stage, kept until DVC has taken them over, so that a kill in between does not cost a rerun.

DVC deletes a stage's outputs before it runs the stage, and records them in dvc.lock after it has hashed them. If it is
killed in between, it does not know that they are there, and runs the stage again. So the outputs of a stage that DVC
started are hard-linked (not copied) into `.scratch/finished/`, beside a sealed list of their hashes. If the same stage
starts again with the same dependencies and params, and dvc.lock has not changed since, the links are put in the places
of the outputs. When any other stage starts, they are deleted.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import reduce, wraps
from pathlib import Path
from typing import Any

from strata.run import files, params, progress, resume

HOME = Path(".scratch/finished")  # in the workspace where DVC runs, on the disk of its outputs
NO_LINKS = {errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK}  # errors of a file system without hard links


def kept(main: Callable[..., None]) -> Callable[..., None]:
    """Wrap a stage's ``main``: skip the call and put its outputs back if DVC was killed after an earlier call.

    Nothing is kept or put back where DVC did not start the stage.
    """

    @wraps(main)
    def run(*words: str) -> None:
        stage, is_first_process = os.environ.get("DVC_STAGE"), os.environ.get("RANK", "0") == "0"
        if stage is None or not is_first_process:
            main(*words)
            return

        # The key says that nothing has changed: not the inputs, the params, nor dvc.lock.
        entry = _resolved(stage)
        facts = {"stage": stage, "inputs": _inputs(entry), "params": _params(entry), "lock": _stamp(Path("dvc.lock"))}
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

        # With RANK, this process is one of several that were started by one without, which has looked already.
        if "RANK" not in os.environ:
            if _put_back(key):
                progress.tell("it had finished when DVC was stopped; its outputs are put back")
                return
            shutil.rmtree(HOME, ignore_errors=True)

        main(*words)
        _keep(key, [path for out in _outputs(entry) for path in _files(Path(out))])

    return run


def _resolved(stage: str) -> dict[str, Any]:
    """Read a stage's entry in dvc.yaml, and replace each `${…}` in it by its value.

    `${item.…}` is the part of the stage's name behind the @; any other key stands for a value in params.yaml.
    """
    name, _, item = stage.partition("@")
    values = params.read_yaml(Path("params.yaml"))

    def value(placeholder: re.Match[str]) -> str:
        key, index = placeholder[1], placeholder[2]
        if key.startswith("item."):
            return item
        param: Any = reduce(lambda section, word: section[word], key.split("."), values)
        return str(param if index is None else param[int(index)])

    entry = params.read_yaml(Path("dvc.yaml"))["stages"][name]
    return json.loads(re.sub(r"\$\{([\w.]+)(?:\[(-?\d+)\])?\}", value, json.dumps(entry)))


def _inputs(entry: dict[str, Any]) -> list[Any]:
    """List the command and every file that it depends on, each with the stamp by which DVC itself sees a change."""
    return [entry["cmd"], *([str(path), *_stamp(path)] for dep in entry["deps"] for path in _files(Path(dep)))]


def _params(entry: dict[str, Any]) -> dict[str, Any]:
    """Read the value of each param that the stage depends on; None for a param that params.yaml does not have."""
    values = params.read_yaml(Path("params.yaml"))

    def child(section: Any, word: str) -> Any:
        return section.get(word) if isinstance(section, dict) else None

    return {key: reduce(child, key.split("."), values) for key in entry.get("params", [])}


def _outputs(entry: dict[str, Any]) -> list[str]:
    """List the paths of a stage's outputs, metrics and plots; each is a path, or a path with options."""
    outs = [out for kind in ("outs", "metrics", "plots") for out in entry.get(kind, [])]
    return [out if isinstance(out, str) else next(iter(out)) for out in outs]


def _files(path: Path) -> Iterator[Path]:
    """Yield a file, or all files of a folder at any depth, except Python's compiled ones."""
    if path.is_file():
        yield path
    for inner in sorted(path.rglob("*")):
        if inner.is_file() and "__pycache__" not in inner.parts:
            yield inner


def _stamp(path: Path) -> list[int]:
    """Return numbers that change when a file changes (inode, size, time of change); none for a missing file."""
    return [(stat := path.stat()).st_ino, stat.st_size, stat.st_mtime_ns] if path.exists() else []


def _keep(key: str, outputs: list[Path]) -> None:
    """Link the ``outputs`` into HOME, and write their hashes there together with ``key``."""
    if not outputs:
        return

    for path in outputs:
        link = HOME / "files" / path
        link.parent.mkdir(parents=True, exist_ok=True)
        try:
            link.hardlink_to(path)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            shutil.rmtree(HOME)  # this disk has no links, so nothing is kept: copies would fill it
            return

    with ThreadPoolExecutor() as pool:
        hashes = dict(zip(map(str, outputs), pool.map(files.sha256, outputs), strict=True))
    resume.keep_json(HOME / "outputs.json", {"key": key, "files": hashes})


def _put_back(key: str) -> bool:
    """Put back all outputs that were kept under ``key``; return False if there are none, or one is not whole."""
    record = resume.kept_json(HOME / "outputs.json")
    if record is None or record["key"] != key:
        return False

    # Check all links before the first is used.
    links = {Path(path): HOME / "files" / path for path in record["files"]}
    for path, link in links.items():
        if not link.is_file() or files.sha256(link) != record["files"][str(path)]:
            resume.drop(HOME, f"is damaged ({path})")
            return False

    for path, link in links.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.hardlink_to(link)
    return True
