"""Outputs of a stage that DVC has not taken over yet: what a kill in DVC's own commit would cost is put back instead.

DVC deletes a stage's outputs before it runs the stage, and locks them when it has hashed them. Killed in between, it
knows nothing of them, and runs the stage over. So what a stage that DVC started has written is linked, not copied, into
`.scratch/finished/`, beside a sealed list of hashes. If the same stage starts again with the same dependencies and
params, and DVC has locked nothing since, the links take their places. They go when any other stage starts.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import reduce, wraps
from pathlib import Path
from typing import Any

from strata.run import files, params, resume

HOME = Path(".scratch/finished")  # in the workspace where DVC runs, on the disk of its outputs
NO_LINKS = {errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK}


def kept(main: Callable[..., None]) -> Callable[..., None]:
    """A stage's ``main`` that is not called where DVC was killed after an earlier call, before it had the outputs."""

    @wraps(main)
    def run(*words: str) -> None:
        stage, first = os.environ.get("DVC_STAGE"), os.environ.get("RANK", "0") == "0"
        if stage is None or not first:
            main(*words)
            return

        entry = _resolved(stage)
        facts = {"stage": stage, "inputs": _inputs(entry), "params": _params(entry), "lock": _stamp(Path("dvc.lock"))}
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        if "RANK" not in os.environ:  # else it is one of several processes, which the first of all has started
            if _put_back(key):
                sys.stderr.write(f"{stage}: it had finished when DVC was stopped; its outputs are put back\n")
                return
            shutil.rmtree(HOME, ignore_errors=True)

        main(*words)
        _keep(key, [path for out in _outputs(entry) for path in _files(Path(out))])

    return run


def _resolved(stage: str) -> dict[str, Any]:
    """A stage's entry in dvc.yaml, with the values of its `${…}`."""
    name, _, item = stage.partition("@")
    values = params.read_yaml(Path("params.yaml"))

    def value(place: re.Match[str]) -> str:
        key, index = place[1], place[2]
        if key.startswith("item."):
            return item
        found = reduce(lambda part, word: part[word], key.split("."), values)
        return str(found if index is None else found[int(index)])

    entry = params.read_yaml(Path("dvc.yaml"))["stages"][name]
    return json.loads(re.sub(r"\$\{([\w.]+)(?:\[(-?\d+)\])?\}", value, json.dumps(entry)))


def _inputs(entry: dict[str, Any]) -> list[Any]:
    """The command, and every file that it depends on, by what DVC itself takes for unchanged."""
    return [entry["cmd"], *([str(path), *_stamp(path)] for dep in entry["deps"] for path in _files(Path(dep)))]


def _params(entry: dict[str, Any]) -> dict[str, Any]:
    """The value of each param that the stage depends on; None of one that is not there."""
    values = params.read_yaml(Path("params.yaml"))
    return {
        key: reduce(lambda part, word: part.get(word) if isinstance(part, dict) else None, key.split("."), values)
        for key in entry.get("params", [])
    }


def _outputs(entry: dict[str, Any]) -> list[str]:
    outs = [out for kind in ("outs", "metrics", "plots") for out in entry.get(kind, [])]
    return [out if isinstance(out, str) else next(iter(out)) for out in outs]


def _files(path: Path) -> Iterator[Path]:
    """A file, or those of a folder; not what Python compiles."""
    if path.is_file():
        yield path
    for inner in sorted(path.rglob("*")):
        if inner.is_file() and "__pycache__" not in inner.parts:
            yield inner


def _stamp(path: Path) -> list[int]:
    """What changes when a file does; nothing of one that is missing."""
    return [(now := path.stat()).st_ino, now.st_size, now.st_mtime_ns] if path.exists() else []


def _keep(key: str, outputs: list[Path]) -> None:
    """Link the ``outputs``, and note their hashes."""
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
    """Put every output back that was kept under ``key``, if all are there to the byte."""
    note = resume.kept_json(HOME / "outputs.json")
    if note is None or note["key"] != key:
        return False
    links = {Path(path): HOME / "files" / path for path in note["files"]}
    for path, link in links.items():
        if not link.is_file() or files.sha256(link) != note["files"][str(path)]:
            resume.drop(HOME, f"is damaged ({path})")
            return False
    for path, link in links.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.hardlink_to(link)
    return True
