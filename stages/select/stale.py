"""Delete what a dropped layer left behind, and leave alone what somebody else put beside it."""

import json
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

SUFFIXES = {".csv", ".html", ".json", ".npy", ".npz", ".parquet", ".png", ".safetensors"}  # of all that stages write


def remove(home: Path, layers: Collection[int]) -> None:
    """Delete from ``home`` what stages wrote for layers that are not in ``layers``: `<L>/`, `<L>.json`, `<L>.csv`.

    A file or folder stays if it has the name of a layer but was not written by a stage, and so do files of other kinds
    inside `<L>/`. A line on stderr says so.
    """
    named = [path for path in sorted(home.glob("*")) if path.name.partition(".")[0].isdecimal()]
    dropped = [path for path in named if int(path.name.partition(".")[0]) not in layers]

    # `3.json` tells whose `3.csv` is: so judge all of them before the first one is deleted.
    for path in [path for path in dropped if _is_written(path)]:
        _delete(path)

    for path in dropped:
        if path.exists():
            sys.stderr.write(f"select: {path} stays, because not all of it was written by a stage\n")


def _is_written(path: Path) -> bool:
    """Say whether a stage wrote ``path``, which has the name of a layer.

    A folder is ours if it holds an SAE, or a meta.json that names the layer. `<L>.json` is ours if it names the layer,
    and `<L>.csv`, the training curve, if `<L>.json` beside it does.
    """
    if path.is_dir():
        return path.name.isdecimal() and (_is_sae(path / "cfg.json") or _is_of(path / "meta.json", int(path.name)))
    layer, _, ending = path.name.partition(".")
    return ending in ("json", "csv") and _is_of(path.with_name(f"{layer}.json"), int(layer))


def _is_sae(path: Path) -> bool:
    """Say whether a cfg.json is that of an SAE."""
    return {"architecture", "d_sae", "metadata"} <= _object(path).keys()


def _is_of(path: Path, layer: int) -> bool:
    """Say whether a JSON file names ``layer``, or says that its stage was skipped."""
    facts = _object(path)
    return facts.get("layer") == layer or facts.get("skipped") is True


def _object(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file. It is empty if the file is missing or broken: no stage has finished it then."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _delete(path: Path) -> None:
    """Delete a file; of a folder, delete the files of kinds that stages write, and the folders that are then empty."""
    if not path.is_dir():
        path.unlink()
        return
    for inner in path.iterdir():
        if inner.is_dir() or inner.suffix in SUFFIXES:
            _delete(inner)
    if not any(path.iterdir()):
        path.rmdir()
