"""Judge every layer against the targets and write the report."""

from pathlib import Path

from stages.report.causes import Causes
from stages.report.evaluated import values_of
from stages.report.families import linked, read_families
from stages.report.figures import figures
from stages.report.latents import read_layer, site
from stages.report.page import Report, render
from stages.report.results import read_history, read_merged, read_numbers, read_result
from stages.report.scorecard import failures, scorecard, summary
from stages.report.tuned import searched_in
from strata.families.read import open_clusters, selected
from strata.interpretation.read import open_latents
from strata.run.door import BadInput
from strata.run.files import write_bytes, write_json, write_text, write_texts
from strata.run.params import load
from strata.tuning import read as tuned
from strata.verdict.shortfall import of_layer
from strata.verdict.targets import settled


def main(
    tune: str,
    train: str,
    interpret: str,
    cluster: str,
    merge: str,
    invert: str,
    steer: str,
    evaluate: str,
    latents: str,
    clusters: str,
    card_file: str,
    summary_file: str,
    page: str,
    plots: str,
    pages: str,
) -> None:
    """Read TUNE's trials and each layer's files in the next nine folders; write scorecard, summary, PAGE, PLOTS and
    the latents' PAGES.

    Example: dvc repro report
    """
    layers, fetch = load("layers", list[int]), load("fetch", dict)
    results = [read_result(Path(train) / f"{layer}.json") for layer in layers]
    # one set of bounds: of documents there is one layer, and of tokens auto does not depend on the layer
    first = results[0]
    targets = settled(load("targets", dict), first.size.kind, first.k or 1, first.controls.get("pca"))
    found = {
        stage: {layer: numbers for layer in layers if (numbers := read_numbers(Path(folder) / f"{layer}.json"))}
        for stage, folder in (
            ("interpret", interpret),
            ("cluster", cluster),
            ("invert", invert),
            ("steer_eval", steer),
            ("evaluate", evaluate),
        )
    }
    folders = {"interpret": interpret, "cluster": cluster, "merge": merge, "invert": invert, "steer_eval": steer}
    skipped = [
        stage
        for stage, folder in {**folders, "evaluate": evaluate}.items()
        if not any(read_numbers(Path(folder) / f"{layer}.json") for layer in layers)
    ]
    histories = {layer: read_history(Path(train) / f"{layer}.csv") for layer in layers}

    reports = [read_merged(Path(merge) / f"{layer}.json") for layer in layers]
    merged = [layer for layer in reports if layer is not None]
    report = load("report", Report)
    families = {
        layer: read_families(open_clusters(Path(clusters) / str(layer)), numbers)
        for layer, numbers in found["cluster"].items()
    }
    causes = Causes(found["steer_eval"], found["invert"])
    picked = {layer: selected(Path(clusters) / str(layer)) for layer in found["cluster"]}
    known = [
        read_layer(
            open_latents(Path(latents) / str(layer)),
            report.pages,
            [*picked.get(layer, []), *causes.latents(layer)],
        )
        for layer in found["interpret"]
    ]

    trials = tuned.read_trials(Path(tune))
    searched = searched_in(Path(tune), trials) if trials else None

    card = scorecard(results, targets)
    evaluated = found.pop("evaluate")
    pictures = figures(results, histories, targets, merged, evaluated) | causes.pictures()
    text = ", ".join(source["source"] for source in fetch["corpus"]["sources"])
    for name, png in pictures.items():
        write_bytes(Path(plots) / f"{name}.png", png)
    worse = {layer.layer: said for layer in results if (said := of_layer(layer.model_dump(), histories[layer.layer]))}
    shown = (worse, known, list(families.values()), causes, merged, searched, evaluated)
    write_text(Path(page), render(results, card, pictures, targets, text, report, *shown, skipped=skipped))
    write_texts((Path(pages) / name, html) for name, html in site(known, causes))
    for layer in known:
        if (number := layer.meta["layer"]) in families:
            write_text(Path(pages) / f"{number}/map.html", linked(families[number].page, layer.ids))
    measured = {f"{stage}.{layer}": numbers for stage in found for layer, numbers in found[stage].items()}
    measured |= {f"evaluate.{layer}": values_of(one) for layer, one in evaluated.items()}
    measured |= {f"merge.{layer.layer}": layer.numbers() for layer in merged}
    measured |= {"tune": tuned.numbers(trials)} if trials else {}
    write_json(Path(summary_file), summary(results, card, measured))
    write_json(Path(card_file), card)

    if targets.enforce and (failed := failures(card)):
        raise BadInput(f"{len(failed)} targets fail: {'; '.join(failed)}")
