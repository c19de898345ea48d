"""Stage select: check the whole of params.yaml, write the layers of this run, and delete what dropped layers left."""

import sys
from pathlib import Path

from stages.select import layers, stale
from stages.select.whole import Params, whole
from strata.run.files import write_json
from strata.run.params import read


def main(target: str, *homes: str) -> None:
    """Check params.yaml, and write into TARGET what later stages must know of the layers of this run.

    In each of HOMES, delete what stages wrote for layers that are not in this run.

    Example: dvc repro select
    """
    params = whole(read())
    _tell_unused(params)
    for home in homes:
        stale.remove(Path(home), params.layers)

    # `<L>.json` and `<L>.last.json` of earlier runs go, so that no dropped layer keeps one.
    for old in Path(target).glob("*.json"):
        if old.stem.removesuffix(".last").isdecimal():
            old.unlink()

    for layer in params.layers:
        write_json(Path(target) / f"{layer}.json", params.by_layer.get(layer, {}))
    write_json(Path(target) / "layers.json", {"layers": params.layers})
    layers.write_last(Path(target), params.layers)
    layers.write_extracted(Path(target), params.extracted)


def _tell_unused(params: Params) -> None:
    """Say on stderr which keys of params.yaml change nothing in this run."""
    trained = params.layers
    if stray := sorted(params.by_layer.keys() - set(trained)):
        sys.stderr.write(f"select: by_layer.{', '.join(map(str, stray))} changes nothing: layers are {trained}\n")

    tasks = params.evaluate.tasks
    for stage, section, runs in (
        ("controls", params.controls, params.controls.run),
        ("explain", params.explain, params.interpret.run and params.explain.model is not None),
        ("invert", params.invert, params.invert.run),
        ("steer_eval", params.steer_eval, params.steer_eval.run),
        ("evaluate.tasks", tasks, params.evaluate.run and bool(tasks.sources)),
    ):
        if runs and not set(params.chosen(section.layers)) & set(trained):
            sys.stderr.write(
                f"select: {stage} does nothing: {stage}.layers is {section.layers}, but layers are {trained}\n"
            )
