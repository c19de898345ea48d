"""Stage select: the layers of this run, each with its own overrides; removes what a dropped layer left behind."""

import shutil
import sys
from pathlib import Path

from stages import params
from stages.door import BadInput, run
from stages.files import write_json


def main(target: str, *homes: str) -> None:
    """Write TARGET/layers.json and TARGET/<L>.json; in each of HOMES, delete what belongs to no chosen layer."""
    layers = params.load("layers", list[int])
    overrides = {str(layer): knobs for layer, knobs in params.load("by_layer", dict[int | str, dict]).items()}
    names = {str(layer) for layer in layers}
    if (chosen := params.load("tune", dict).get("layer")) not in layers:
        raise BadInput(f"params.yaml: tune.layer is {chosen!r}, but layers are {layers}; name one of them")
    if stray := sorted(overrides.keys() - names):
        print(f"select: by_layer.{', '.join(stray)} changes nothing: layers are {layers}", file=sys.stderr)
    for stage in ("invert", "steer_eval"):
        knobs = params.load(stage, dict)
        if knobs.get("run") and not set(wanted := knobs.get("layers") or []) & set(layers):
            print(f"select: {stage} does nothing: {stage}.layers is {wanted}, but layers are {layers}", file=sys.stderr)
    for home in map(Path, homes):
        for stale in home.glob("[0-9]*") if home.exists() else ():
            if stale.name.partition(".")[0] not in names:
                shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
    for old in Path(target).glob("*.json"):
        old.unlink()
    for layer in layers:
        write_json(Path(target) / f"{layer}.json", overrides.get(str(layer), {}))
    write_json(Path(target) / "layers.json", {"layers": layers})


if __name__ == "__main__":
    run(main)
