"""The files that select writes into `data/layers/` for stages that go by layers, and one reader for each.

Each file says only what a stage has to know. So when ``layers`` changes, a stage runs again only if the fact that it
depends on has changed.
"""

from collections.abc import Sequence
from pathlib import Path

from strata.run.files import read_json, write_json


def write_extracted(folder: Path, layers: Sequence[int]) -> None:
    """Write `extracted.json`: the layers whose activations are stored, which may be more than those of this run.

    They are sorted, so that the same layers in another order are not extracted again.
    """
    write_json(folder / "extracted.json", {"layers": sorted(layers)})


def extracted(path: Path) -> list[int]:
    """Read the layers of `extracted.json`."""
    return read_json(path)["layers"]


def write_last(folder: Path, layers: Sequence[int]) -> None:
    """Write `<L>.last.json` for each layer L: whether L is the last one in ``layers``."""
    for layer in layers:
        write_json(folder / f"{layer}.last.json", {"last": layer == layers[-1]})


def chosen(layers: list[int] | None, layer: int, last: Path) -> list[int]:
    """Return the layers that a section of params.yaml works on, as far as the stage of ``layer`` has to know.

    ``layers``: what the section says. If it is None (null), the section works on the last layer of the run: return
    ``[layer]`` if ``layer`` is that one, else nothing. ``last``: the file of ``layer`` that :func:`write_last` wrote.
    """
    if layers is not None:
        return layers
    return [layer] if read_json(last)["last"] else []
