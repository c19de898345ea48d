"""Stage select: params.yaml checked whole, and the layers of this run; removes what a dropped layer left behind."""

import sys
from pathlib import Path

from stages.select import stale
from stages.select.whole import Params, whole
from strata.run.files import write_json
from strata.run.params import read


def main(target: str, *homes: str) -> None:
    """Write TARGET/layers.json and TARGET/<L>.json; in each of HOMES, delete what stages wrote for other layers.

    Example: dvc repro select
    """
    params = whole(read())
    _tell(params)
    for home in homes:
        stale.remove(Path(home), params.layers)
    for old in Path(target).glob("*.json"):
        if old.stem.isdecimal():
            old.unlink()
    for layer in params.layers:
        write_json(Path(target) / f"{layer}.json", params.by_layer.get(layer, {}))
    write_json(Path(target) / "layers.json", {"layers": params.layers})


def _tell(params: Params) -> None:
    """Say what in params.yaml changes nothing in this run."""
    layers = params.layers
    if stray := sorted(params.by_layer.keys() - set(layers)):
        sys.stderr.write(f"select: by_layer.{', '.join(map(str, stray))} changes nothing: layers are {layers}\n")
    for stage, section in (("invert", params.invert), ("steer_eval", params.steer_eval)):
        if section.run and not set(section.layers) & set(layers):
            sys.stderr.write(
                f"select: {stage} does nothing: {stage}.layers is {section.layers}, but layers are {layers}\n"
            )
