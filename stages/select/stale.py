"""What a dropped layer left behind, told from what somebody else put beside it."""

import json
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

SUFFIXES = {".csv", ".html", ".json", ".npy", ".npz", ".parquet", ".png", ".safetensors"}  # of all that stages write


def remove(home: Path, layers: Collection[int]) -> None:
    """Delete from ``home`` what stages wrote for layers that are not in ``layers``: `<L>/`, `<L>.json`, `<L>.csv`.

    What has the name of a layer but was not written by a stage stays, and is told; so do strange files in `<L>/`.
    """
    named = [path for path in sorted(home.glob("*")) if path.name.partition(".")[0].isdecimal()]
    dropped = [path for path in named if int(path.name.partition(".")[0]) not in layers]
    written = [path for path in dropped if _is_written(path)]
    for path in written:
        _remove(path)
    for path in dropped:
        if path.exists():
            sys.stderr.write(f"select: {path} stays, because not all of it was written by a stage\n")


def _is_written(path: Path) -> bool:
    """Whether a folder is an SAE or says of which layer it is, and a file likewise, or is the curve of such a one."""
    if path.is_dir():
        return path.name.isdecimal() and (_is_sae(path / "cfg.json") or _is_of(path / "meta.json", int(path.name)))
    layer, _, ending = path.name.partition(".")
    return ending in ("json", "csv") and _is_of(path.with_name(f"{layer}.json"), int(layer))


def _is_sae(path: Path) -> bool:
    return {"architecture", "d_sae", "metadata"} <= _object(path).keys()


def _is_of(path: Path, layer: int) -> bool:
    facts = _object(path)
    return facts.get("layer") == layer or facts.get("skipped") is True


def _object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is none, because then no stage has finished it."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _remove(path: Path) -> None:
    """Delete a file, or a folder's files of the kinds that stages write, and what folders are empty then."""
    if not path.is_dir():
        path.unlink()
        return
    for inner in path.iterdir():
        if inner.is_dir() or inner.suffix in SUFFIXES:
            _remove(inner)
    if not any(path.iterdir()):
        path.rmdir()
