"""Stage select: params.yaml checked whole, and the layers of this run; removes what a dropped layer left behind."""

import sys
from pathlib import Path

from stages.select import layers, stale
from stages.select.whole import Params, whole
from strata.run.files import write_json
from strata.run.params import read


def main(target: str, *homes: str) -> None:
    """Write into TARGET what later stages must know of the layers of this run; in each of HOMES, delete what stages
    wrote for other layers.

    Example: dvc repro select
    """
    params = whole(read())
    _tell(params)
    for home in homes:
        stale.remove(Path(home), params.layers)
    for old in Path(target).glob("*.json"):
        if old.stem.removesuffix(".last").isdecimal():
            old.unlink()

    for layer in params.layers:
        write_json(Path(target) / f"{layer}.json", params.by_layer.get(layer, {}))
    write_json(Path(target) / "layers.json", {"layers": params.layers})
    layers.write_last(Path(target), params.layers)
    layers.write_extracted(Path(target), params.extracted)


def _tell(params: Params) -> None:
    """Say what in params.yaml changes nothing in this run."""
    trained = params.layers
    if stray := sorted(params.by_layer.keys() - set(trained)):
        sys.stderr.write(f"select: by_layer.{', '.join(map(str, stray))} changes nothing: layers are {trained}\n")
    for stage, section in (("invert", params.invert), ("steer_eval", params.steer_eval)):
        if section.run and not set(params.chosen(section.layers)) & set(trained):
            sys.stderr.write(
                f"select: {stage} does nothing: {stage}.layers is {section.layers}, but layers are {trained}\n"
            )
