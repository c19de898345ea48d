"""params.yaml, whole: what each section is, and what one section says of another.

`select` is the first stage of every run, and refuses here what a later stage would refuse after an hour. A plan reads
the same. Nothing here, nor in the rooms' `knobs.py`, imports what takes long: it has to be quick.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from stages.cluster.knobs import Cluster
from stages.door import BadInput
from stages.evaluate.knobs import Evaluate
from stages.extract.knobs import Extract
from stages.fetch.knobs import Corpus, Fetch, over
from stages.interpret.knobs import Interpret
from stages.invert.knobs import Invert
from stages.merge.knobs import Merge
from stages.params import ByLayer, Layers, Machine, Seed, check, read
from stages.report.knobs import Report
from stages.sae.knobs import Train
from stages.steer_eval.knobs import SteerEval
from stages.targets import Targets
from stages.tune.knobs import Tune, check_taken


@dataclass(frozen=True)
class Params:
    """Section by section, in the order of params.yaml."""

    seed: Seed
    layers: Layers
    by_layer: ByLayer
    machine: Machine
    fetch: Fetch
    extract: Extract
    tune: Tune
    train: Train
    interpret: Interpret
    cluster: Cluster
    merge: Merge
    invert: Invert
    steer_eval: SteerEval
    evaluate: Evaluate
    targets: Targets
    report: Report

    def knobs(self, layer: int) -> Train:
        """The section train with what ``by_layer`` says of a layer; what tune will find is not known yet."""
        override = self.by_layer.get(layer, {})
        where = f"params.yaml: train with by_layer.{layer}"
        return check({**self.train.model_dump(), **override}, Train, where) if override else self.train


def read_whole(path: Path = Path("params.yaml")) -> Params:
    """Read params.yaml and check all of it. Raises BadInput."""
    return whole(read(path), path)


def whole(values: dict[str, Any], path: Path = Path("params.yaml")) -> Params:
    """Check ``values``, which are those of ``path``: each section by itself, then together. Raises BadInput."""
    params = Params(**{name: check(values.get(name), kind, f"{path}: {name}") for name, kind in SECTIONS.items()})
    _together(params, values, path)
    return params


SECTIONS: dict[str, Any] = {section.name: section.type for section in fields(Params)}


def _together(params: Params, values: dict[str, Any], path: Path) -> None:
    """Refuse what no section can see alone. ``values``: the same as plain values."""
    layers, kind = params.layers, params.fetch.lm.kind
    if kind != "language" and layers != [0]:
        raise BadInput(f"{path}: layers is {layers}, but with fetch.lm.kind {kind} it must be [0]")
    if params.tune.layer not in layers:
        raise BadInput(f"{path}: tune.layer is {params.tune.layer}, but layers are {layers}; name one of them")
    if params.tune.run:
        check_taken(params.train.from_tune, params.tune)
    for layer, override in params.by_layer.items():
        if "from_tune" in override:
            raise BadInput(f"{path}: by_layer.{layer}.from_tune changes nothing; take the knob out of train.from_tune")
        check({**values["train"], **override}, Train, f"{path}: train with by_layer.{layer}")
    if params.interpret.texts is not None:
        other = over(values["fetch"]["corpus"], params.interpret.texts)
        check(other, Corpus, f"{path}: interpret.texts over fetch.corpus")
