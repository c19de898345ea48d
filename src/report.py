"""Judge every layer against the targets and write the report."""

from pathlib import Path

from stages.door import BadInput, run
from stages.files import replacing, write_json, write_text
from stages.interpret.read import open_latents
from stages.params import load
from stages.report.figures import figures
from stages.report.latents import read_layer, site
from stages.report.page import Report, render
from stages.report.results import read_history, read_interpreted, read_merged, read_result
from stages.report.scorecard import failures, scorecard, summary
from stages.targets import Targets


def main(
    train: str,
    interpret: str,
    latents: str,
    merge: str,
    card_file: str,
    summary_file: str,
    page: str,
    plots: str,
    pages: str,
) -> None:
    """Read each layer's files in TRAIN, INTERPRET, LATENTS and MERGE; write scorecard, summary, PAGE, PLOTS and the
    latents' PAGES."""
    layers, targets, fetch = load("layers", list[int]), load("targets", Targets), load("fetch", dict)
    results = [read_result(Path(train) / f"{layer}.json") for layer in layers]
    found = {layer: read_interpreted(Path(interpret) / f"{layer}.json") for layer in layers}
    interpreted = {layer: numbers for layer, numbers in found.items() if numbers}
    histories = {layer: read_history(Path(train) / f"{layer}.csv") for layer in layers}

    reports = [read_merged(Path(merge) / f"{layer}.json") for layer in layers]
    merged = [layer for layer in reports if layer is not None]
    report = load("report", Report)
    known = [read_layer(open_latents(Path(latents) / str(layer)), report.pages) for layer in interpreted]

    card = scorecard(results, targets)
    pictures = figures(results, histories, targets, merged)
    text = ", ".join(source["source"] for source in fetch["corpus"]["sources"])
    for name, png in pictures.items():
        with replacing(Path(plots) / f"{name}.png") as temporary:
            temporary.write_bytes(png)
    write_text(Path(page), render(results, card, pictures, targets, text, report, known, merged))
    for name, html in site(known):
        write_text(Path(pages) / name, html)
    write_json(Path(summary_file), summary(results, card, interpreted, merged))
    write_json(Path(card_file), card)

    if targets.enforce and (failed := failures(card)):
        raise BadInput(f"{len(failed)} targets fail: {'; '.join(failed)}")


if __name__ == "__main__":
    run(main)
