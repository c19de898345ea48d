"""What select writes into `data/layers/` for the stages that go by layers, and the one reader of each file.

A stage depends on a file that says only what the stage has to know. So a change of ``layers`` runs a stage again where
that fact changed, and nowhere else.
"""

from collections.abc import Sequence
from pathlib import Path

from strata.run.files import read_json, write_json


def write_extracted(folder: Path, layers: Sequence[int]) -> None:
    """Write `extracted.json`: the layers whose activations are stored, which may be more than those of this run.

    In order, so that the same layers named in another order are not extracted anew.
    """
    write_json(folder / "extracted.json", {"layers": sorted(layers)})


def extracted(path: Path) -> list[int]:
    """Read `extracted.json`."""
    return read_json(path)["layers"]


def write_last(folder: Path, layers: Sequence[int]) -> None:
    """Write `<L>.last.json` for each layer: whether it is the last one that ``layers`` names."""
    for layer in layers:
        write_json(folder / f"{layer}.last.json", {"last": layer == layers[-1]})


def chosen(layers: list[int] | None, layer: int, last: Path) -> list[int]:
    """A section's ``layers``, as a stage of ``layer`` sees them: where they are null, ``layer`` if it is the last one.

    ``last``: the file of ``layer`` that :func:`write_last` wrote.
    """
    if layers is not None:
        return layers
    return [layer] if read_json(last)["last"] else []
