"""Check the whole of params.yaml: each section by itself, and the sections against each other.

`select` is the first stage of every run. It refuses here what a later stage would refuse after an hour; a plan does the
same checks. This file and the `knobs.py` of the rooms import nothing slow, because this check has to be quick.
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
from strata.interpretation.explain_knobs import Explain
from strata.interpretation.knobs import Interpret
from strata.inversion.knobs import Invert
from strata.merging.knobs import Merge
from strata.replication.knobs import Stability
from strata.run.door import BadInput, near
from strata.run.params import ByLayer, Layers, Machine, Seed, check, read
from strata.steering.knobs import SteerEval
from strata.training.knobs import Train
from strata.tuning.knobs import Tune, check_taken, extremes
from strata.twins.knobs import Controls, barred
from strata.verdict.targets import AGAIN, Targets


@dataclass(frozen=True)
class Params:
    """The sections of params.yaml, in its order."""

    seed: Seed
    layers: Layers
    by_layer: ByLayer
    machine: Machine
    fetch: Fetch
    extract: Extract
    tune: Tune
    train: Train
    controls: Controls
    stability: Stability
    interpret: Interpret
    explain: Explain
    cluster: Cluster
    merge: Merge
    invert: Invert
    steer_eval: SteerEval
    evaluate: Evaluate
    targets: Targets
    report: Report

    @property
    def extracted(self) -> list[int]:
        """The layers whose activations are stored; they may be more than ``layers``."""
        return self.layers if self.extract.layers is None else self.extract.layers

    def chosen(self, layers: list[int] | None) -> list[int]:
        """Return the layers that a section with these ``layers`` works on; None means the last layer of this run."""
        return self.layers[-1:] if layers is None else layers

    def knobs(self, layer: int) -> Train:
        """Return the section train of one layer: with ``by_layer`` over it, but without what tune will find."""
        override = self.by_layer.get(layer, {})
        where = f"params.yaml: train with by_layer.{layer}"
        return check({**self.train.model_dump(), **override}, Train, where) if override else self.train


def read_whole(path: Path = Path("params.yaml")) -> Params:
    """Read params.yaml and check all of it. Raises BadInput."""
    return whole(read(path), path)


def whole(values: dict[str, Any], path: Path = Path("params.yaml")) -> Params:
    """Check ``values``, the content of ``path``: each section by itself, then all together. Raises BadInput."""
    known(values, path)
    params = Params(**{name: check(values.get(name), kind, f"{path}: {name}") for name, kind in SECTIONS.items()})
    _check_together(params, values, path)
    return params


SECTIONS: dict[str, Any] = {section.name: section.type for section in fields(Params)}  # name -> type


def known(values: dict[str, Any], path: Path = Path("params.yaml")) -> dict[str, Any]:
    """Return the ``values`` of params.yaml; refuse them if a section is missing or unknown."""
    if unknown := [str(name) for name in values if name not in SECTIONS]:
        meant = near(unknown[0], SECTIONS) or f"; the known ones are {', '.join(SECTIONS)}"
        raise BadInput(f"{path} has an unknown section {unknown[0]!r}{meant}")
    if missing := [name for name in SECTIONS if name not in values]:
        raise BadInput(f"{path} lacks the section {missing[0]!r}")
    return values


def _check_together(params: Params, values: dict[str, Any], path: Path) -> None:
    """Refuse what one section alone cannot know to be wrong. Raises BadInput.

    ``values``: the content of ``path`` that ``params`` was made from.
    """
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
        interpreted = over(values["fetch"]["corpus"], params.interpret.texts)
        check(interpreted, Corpus, f"{path}: interpret.texts over fetch.corpus")

    if (again := [name for name in AGAIN if name in params.targets.bounds]) and not params.stability.seeds:
        raise BadInput(
            f"{path}: targets has {again[0]}, but stability.seeds is 0, so it could not fail; raise it, e.g. to 3"
        )
    if params.interpret.filters.again.bounds and not params.stability.seeds:
        raise BadInput(
            f"{path}: interpret.filters.again has a bound, but stability.seeds is 0, so nobody knows which latents "
            "come again; raise it, e.g. to 3"
        )

    _check_training(params, values["train"], path)
    for layer in params.layers:
        _check_latents(params, layer, path)
    _check_twins(params, path)
    _check_merge(params, path)
    _check_prompts(params, path)


def _check_training(params: Params, train: dict[str, Any], path: Path) -> None:
    """Check tune, train and ``by_layer`` against each other. ``train``: the section as plain values."""
    layers, tune = params.layers, params.tune
    for layer, override in params.by_layer.items():
        if "from_tune" in override:
            raise BadInput(f"{path}: by_layer.{layer}.from_tune changes nothing; take the knob out of train.from_tune")
        check({**train, **override}, Train, f"{path}: train with by_layer.{layer}")

    # Each end of a range of tune.space must make a valid section train. An end is not judged alone where the space also
    # holds a knob that it has to fit: then each trial is judged.
    if tune.run:
        check_taken(params.train.from_tune, tune)
        for name, value in extremes(tune):
            if not {"k", "latents", "batch_size"} & (tune.space.keys() - {name}):
                check({**train, name: value}, Train, f"{path}: train with {name} {value} of tune.space")

    if not params.fetch.corpus.validation and any(params.knobs(layer).from_ is None for layer in layers):
        raise BadInput(f"{path}: fetch.corpus.validation is 0, but training is judged by validation rows; raise it")


def _check_latents(params: Params, layer: int, path: Path) -> None:
    """Refuse numbers of latents, and counts of them, that are too large for the dictionary of ``layer``."""
    knobs, explain = params.knobs(layer), params.explain
    if knobs.from_ is not None:
        return  # the imported SAE itself says how many latents it has

    latents, dictionary = knobs.latents, f"the {knobs.latents} latents of layer {layer}"
    for stage, section in (("invert", params.invert), ("steer_eval", params.steer_eval)):
        named = section.latents if section.run and layer in params.chosen(section.layers) else 0
        if isinstance(named, list) and max(named) >= latents:
            raise BadInput(f"{path}: {stage}.latents has {max(named)}, but {dictionary} are 0 to {latents - 1}")
    if params.evaluate.run and (largest_k := max(params.evaluate.probing.k)) > latents:
        raise BadInput(f"{path}: evaluate.probing.k has {largest_k}, more than {dictionary}")
    if layer in params.chosen(explain.layers) and explain.range and explain.range[0] >= latents:
        raise BadInput(f"{path}: explain.range is {explain.range}, but {dictionary} are 0 to {latents - 1}")
    if params.cluster.run:
        _check_clusters(params.cluster, latents, dictionary, path)


def _check_clusters(cluster: Cluster, latents: int, dictionary: str, path: Path) -> None:
    """Refuse more clusters than there are ``latents``. ``dictionary``: what messages call these."""
    wanted = cluster.clusters  # a number of clusters, or a share of the latents
    if cluster.method in ("agglomerative", "kmeans") and isinstance(wanted, int) and wanted > latents:
        raise BadInput(f"{path}: cluster.clusters is {wanted}, more than {dictionary}")

    # Methods that are not told a number of clusters may make as many as there are latents.
    told_number = cluster.method == "kmeans" or (cluster.method == "agglomerative" and cluster.distance is None)
    most = latents
    if told_number:
        most = wanted if isinstance(wanted, int) else math.ceil(wanted * latents)
    if cluster.selection.clusters == "single" and cluster.selection.single >= most:
        raise BadInput(
            f"{path}: cluster.selection.single is {cluster.selection.single}, but at most there are {most}, 0 "
            f"to {most - 1}"
        )


def _check_twins(params: Params, path: Path) -> None:
    """Refuse a target with a margin over a twin that no layer of this run has: it could not fail."""
    controls = params.controls
    layers = [layer for layer in params.layers if controls.run and layer in params.chosen(controls.layers)]
    for metric, bound in params.targets.bounds.items():
        for twin in bound.beats:
            if not layers or twin not in controls.twins:
                has = f"controls.twins is {controls.twins}" if layers else "controls trains none in this run"
                raise BadInput(f"{path}: targets.{metric}.beats names {twin}, but {has}")
            if all(reasons := [barred(twin, params.knobs(layer)) for layer in layers]):
                raise BadInput(f"{path}: targets.{metric}.beats names {twin}, but there can be none: {reasons[0]}")


def _check_merge(params: Params, path: Path) -> None:
    """Refuse a merge by clusters that cluster does not make."""
    cluster, merge = params.cluster, params.merge
    if cluster.run and merge.run and merge.by == "clusters" and merge.latents and cluster.method != "agglomerative":
        raise BadInput(
            f"{path}: merge.by is clusters, but cluster.method {cluster.method} makes no tree that could be cut; set "
            "merge.by: loss, or merge.latents: null for cluster's own clusters"
        )


def _check_prompts(params: Params, path: Path) -> None:
    """Refuse prompts of steer_eval that do not fit into a context, or that are shorter than what is scored of them."""
    steer, context = params.steer_eval, params.extract.context
    runs = steer.run and set(params.chosen(steer.layers)) & set(params.layers)
    if params.fetch.lm.kind != "language" or not runs:
        return

    if steer.tokens >= context:
        raise BadInput(
            f"{path}: steer_eval.tokens is {steer.tokens}, but a context has {context} tokens, BOS included "
            "(extract.context)"
        )
    if steer.scored > steer.tokens:
        raise BadInput(f"{path}: steer_eval.scored is {steer.scored}, more than the {steer.tokens} tokens of a prompt")
