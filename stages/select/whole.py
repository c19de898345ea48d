"""params.yaml, whole: what each section is, and what one section says of another.

`select` is the first stage of every run, and refuses here what a later stage would refuse after an hour. A plan reads
the same. Nothing here, nor in the rooms' `knobs.py`, imports what takes long: it has to be quick.
"""

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from stages.report.knobs import Report
from strata.corpus.knobs import Corpus, Fetch, check_source, over
from strata.evaluation.knobs import Evaluate
from strata.extraction.knobs import Extract
from strata.families.knobs import Cluster
from strata.interpretation.knobs import Interpret
from strata.inversion.knobs import Invert
from strata.merging.knobs import Merge
from strata.run.door import BadInput
from strata.run.params import ByLayer, Layers, Machine, Seed, check, known, read
from strata.steering.knobs import SteerEval
from strata.training.knobs import Train
from strata.tuning.knobs import Tune, check_taken, extremes
from strata.verdict.targets import Targets


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

    @property
    def extracted(self) -> list[int]:
        """The layers whose activations are stored."""
        return self.layers if self.extract.layers is None else self.extract.layers

    def chosen(self, layers: list[int] | None) -> list[int]:
        """The ``layers`` of a section that works on some of them; null: the last one of this run."""
        return self.layers[-1:] if layers is None else layers

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
    known(values, path)
    params = Params(**{name: check(values.get(name), kind, f"{path}: {name}") for name, kind in SECTIONS.items()})
    _together(params, values, path)
    return params


SECTIONS: dict[str, Any] = {section.name: section.type for section in fields(Params)}


def _together(params: Params, values: dict[str, Any], path: Path) -> None:
    """Refuse what no section can see alone. ``values``: the same as plain values. Raises BadInput."""
    layers, kind = params.layers, params.fetch.lm.kind
    if kind != "language" and layers != [0]:
        raise BadInput(f"{path}: layers is {layers}, but with fetch.lm.kind {kind} it must be [0]")
    if kind != "language" and params.extracted != [0]:
        raise BadInput(
            f"{path}: extract.layers is {params.extracted}, but with fetch.lm.kind {kind} it must be null or [0]"
        )
    if missing := [layer for layer in layers if layer not in params.extracted]:
        raise BadInput(
            f"{path}: extract.layers is {params.extracted}, but layers names {missing[0]}; add it there, or write null"
        )
    check_source(params.fetch.lm)
    if params.interpret.texts is not None:
        other = over(values["fetch"]["corpus"], params.interpret.texts)
        check(other, Corpus, f"{path}: interpret.texts over fetch.corpus")
    _of_training(params, values["train"], path)
    _of_latents(params, path)
    _of_prompts(params, path)


def _of_training(params: Params, train: dict[str, Any], path: Path) -> None:
    """What tune, train and ``by_layer`` say of each other."""
    layers, tune = params.layers, params.tune
    for layer, override in params.by_layer.items():
        if "from_tune" in override:
            raise BadInput(f"{path}: by_layer.{layer}.from_tune changes nothing; take the knob out of train.from_tune")
        check({**train, **override}, Train, f"{path}: train with by_layer.{layer}")
    if tune.run:
        check_taken(params.train.from_tune, tune)
        for name, value in extremes(tune):
            if not {"k", "latents", "batch_size"} & (tune.space.keys() - {name}):  # or they are judged by the trial
                check({**train, name: value}, Train, f"{path}: train with {name} {value} of tune.space")
    if not params.fetch.corpus.validation and any(params.knobs(layer).from_ is None for layer in layers):
        raise BadInput(f"{path}: fetch.corpus.validation is 0, but training is judged by validation rows; raise it")


def _of_latents(params: Params, path: Path) -> None:
    """Numbers of latents, and how many of them, that a layer's dictionary has to hold."""
    cluster, merge, explain = params.cluster, params.merge, params.interpret.explain
    for layer in params.layers:
        knobs = params.knobs(layer)
        if knobs.from_ is not None:
            continue  # it says itself how many latents it has
        latents, by = knobs.latents, f"the {knobs.latents} latents of layer {layer}"
        for stage, section in (("invert", params.invert), ("steer_eval", params.steer_eval)):
            named = section.latents if section.run and layer in params.chosen(section.layers) else 0
            if isinstance(named, list) and max(named) >= latents:
                raise BadInput(f"{path}: {stage}.latents has {max(named)}, but {by} are 0 to {latents - 1}")
        if params.evaluate.run and (most := max(params.evaluate.probing.k)) > latents:
            raise BadInput(f"{path}: evaluate.probing.k has {most}, more than {by}")
        if layer in params.chosen(explain.layers) and explain.range and explain.range[0] >= latents:
            raise BadInput(f"{path}: interpret.explain.range is {explain.range}, but {by} are 0 to {latents - 1}")
        if not cluster.run:
            continue
        asked = cluster.clusters
        if cluster.method in ("agglomerative", "kmeans") and isinstance(asked, int) and asked > latents:
            raise BadInput(f"{path}: cluster.clusters is {asked}, more than {by}")
        counted = cluster.method == "kmeans" or (cluster.method == "agglomerative" and cluster.distance is None)
        most = (asked if isinstance(asked, int) else math.ceil(asked * latents)) if counted else latents
        if cluster.selection.clusters == "single" and cluster.selection.single >= most:
            raise BadInput(
                f"{path}: cluster.selection.single is {cluster.selection.single}, but at most there are {most}, 0 "
                f"to {most - 1}"
            )
    if cluster.run and merge.run and merge.by == "clusters" and merge.latents and cluster.method != "agglomerative":
        raise BadInput(
            f"{path}: merge.by is clusters, but cluster.method {cluster.method} makes no tree that could be cut; set "
            "merge.by: loss, or merge.latents: null for cluster's own clusters"
        )


def _of_prompts(params: Params, path: Path) -> None:
    """Texts that have to fit into contexts, and into each other."""
    steer, context = params.steer_eval, params.extract.context
    if params.fetch.lm.kind != "language" or not steer.run or not set(params.chosen(steer.layers)) & set(params.layers):
        return
    if steer.tokens >= context:
        raise BadInput(
            f"{path}: steer_eval.tokens is {steer.tokens}, but a context has {context} tokens, BOS included "
            "(extract.context)"
        )
    if steer.scored > steer.tokens:
        raise BadInput(f"{path}: steer_eval.scored is {steer.scored}, more than the {steer.tokens} tokens of a prompt")
