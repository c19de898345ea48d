"""Read what every stage left, as one record that the page, the pictures and the latents' pages are made of."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.report import stability
from stages.report.causes import Causes
from stages.report.evaluated import values_of
from stages.report.families import Families, read_families
from stages.report.knobs import Report
from stages.report.layer import Layer, read_layer
from stages.report.results import Merged, Numbers, read_merged, read_numbers
from stages.report.tuned import Searched, searched_in
from stages.train.read import History, Measured, Result, read_history, read_result
from strata.families.read import open_clusters, selected
from strata.interpretation.labels import named
from strata.interpretation.read import open_latents
from strata.run.params import load
from strata.tuning.read import read_trials
from strata.twins.read import Twins, read_twins
from strata.verdict import shortfall
from strata.verdict.targets import AGAIN, Targets, settled


@dataclass(frozen=True)
class Folders:
    """Where each stage left its files. In all but ``tune`` a file or folder is named after its layer.

    ``tune`` to ``evaluate`` are the stages' folders in `reports/`; ``latents`` to ``clusters`` are those in `data/`;
    ``labels`` is the file of names that people gave.
    """

    tune: Path
    train: Path
    controls: Path
    stability: Path
    interpret: Path
    explain: Path
    cluster: Path
    merge: Path
    invert: Path
    steer_eval: Path
    evaluate: Path
    latents: Path
    explained: Path
    clusters: Path
    labels: Path


@dataclass(frozen=True)
class Findings:
    """What the stages found, layer by layer in the order of params.yaml, and what the report holds it against.

    A stage that was skipped on a layer has no entry for that layer.
    """

    knobs: Report
    targets: Targets
    corpus: str  # the names of the text's sources
    results: list[Result]  # of train, one for each layer
    histories: Mapping[int, History]  # of train, by layer
    twins: Mapping[int, Twins]  # of the SAEs, by layer
    searched: Searched | None  # by tune; None if it was skipped
    latents: list[Layer]  # that interpret looked at and explain explained
    families: Mapping[int, Families]  # of latents, by layer
    merged: list[Merged]  # dictionaries that merge made smaller
    causes: Causes  # what steering and inversion showed
    evaluated: Mapping[int, Numbers]  # by evaluate, by layer
    measured: Mapping[str, Mapping[int, Numbers]]  # stage after train -> layer -> all that it measured

    @property
    def skipped(self) -> list[str]:
        """The stages after train that ran on no layer. Stability is not among them, because by default it is off."""
        ran = {"controls": self.twins, **self.measured}
        return [stage for stage, layers in ran.items() if not layers and stage != "stability"]

    @property
    def again(self) -> dict[int, Measured]:
        """Layer -> the metrics AGAIN, where stability ran."""
        measured = self.measured["stability"]
        return {layer: {name: numbers[name]["value"] for name in AGAIN} for layer, numbers in measured.items()}

    def tested(self, result: Result) -> Measured:
        """Return all metrics that a target may name, of the layer of ``result``."""
        return {**result.test, **dict.fromkeys(AGAIN), **self.again.get(result.layer, {})}

    @property
    def shortfalls(self) -> dict[int, str]:
        """Layer -> why its SAE is worse than the mean or PCA, and what to try. A good SAE has no entry."""
        reasons = {
            result.layer: shortfall.of_layer(result.model_dump(), self.histories[result.layer])
            for result in self.results
        }
        return {layer: reason for layer, reason in reasons.items() if reason}

    def summarised(self) -> dict[str, Mapping[str, Any]]:
        """Return the numbers that the summary has beside train's: ``interpret.9`` -> its numbers, nested."""
        whole = ("interpret", "explain", "cluster", "invert", "steer_eval")  # of evaluate and merge only a part
        return {
            **{f"controls.{layer}": twins.numbers() for layer, twins in self.twins.items()},
            **{f"{stage}.{layer}": numbers for stage in whole for layer, numbers in self.measured[stage].items()},
            **{
                f"stability.{layer}": stability.values_of(numbers)
                for layer, numbers in self.measured["stability"].items()
            },
            **{f"evaluate.{layer}": values_of(numbers) for layer, numbers in self.evaluated.items()},
            **{f"merge.{merged.layer}": merged.numbers() for merged in self.merged},
            **({"tune": self.searched.result} if self.searched else {}),
        }


def read_findings(folders: Folders) -> Findings:
    """Read params.yaml and the files of every stage. Raises BadInput for a file that is missing or damaged."""
    layers, knobs, fetch = load("layers", list[int]), load("report", Report), load("fetch", dict)

    results = [read_result(folders.train / f"{layer}.json") for layer in layers]
    histories = {layer: read_history(folders.train / f"{layer}.csv") for layer in layers}

    # One set of bounds is right for all layers: data without layers have only one, and the bounds for a language model
    # do not depend on the layer where they are auto.
    first_result = results[0]
    targets = settled(
        load("targets", dict), first_result.size.kind, first_result.k or 1, first_result.controls.get("pca")
    )

    twins = {layer: found for layer in layers if (found := read_twins(folders.controls / f"{layer}.json"))}
    measured = {
        stage: {layer: numbers for layer in layers if (numbers := read_numbers(folder / f"{layer}.json"))}
        for stage, folder in (
            ("stability", folders.stability),
            ("interpret", folders.interpret),
            ("explain", folders.explain),
            ("cluster", folders.cluster),
            ("merge", folders.merge),
            ("invert", folders.invert),
            ("steer_eval", folders.steer_eval),
            ("evaluate", folders.evaluate),
        )
    }
    merge_reports = [read_merged(folders.merge / f"{layer}.json") for layer in layers]
    causes = Causes(measured["steer_eval"], measured["invert"], measured["evaluate"])
    families = {
        layer: read_families(open_clusters(folders.clusters / str(layer)), numbers)
        for layer, numbers in measured["cluster"].items()
    }

    # A latent gets a page if it is important, if cluster selected it, or if it was steered or inverted.
    selection = {layer: selected(folders.clusters / str(layer)) for layer in measured["cluster"]}
    latents = [
        read_layer(
            named(open_latents(folders.latents / str(layer), folders.explained / str(layer)), folders.labels),
            knobs.pages,
            [*selection.get(layer, []), *causes.latents(layer)],
            families.get(layer),
        )
        for layer in measured["interpret"]
    ]

    trials = read_trials(folders.tune)
    return Findings(
        knobs=knobs,
        targets=targets,
        corpus=", ".join(source["source"] for source in fetch["corpus"]["sources"]),
        results=results,
        histories=histories,
        twins=twins,
        searched=searched_in(folders.tune, trials) if trials else None,
        latents=latents,
        families=families,
        merged=[merged for merged in merge_reports if merged is not None],
        causes=causes,
        evaluated=measured["evaluate"],
        measured=measured,
    )
