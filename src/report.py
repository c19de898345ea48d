"""Judge every layer against the targets and write the report."""

from pathlib import Path

from stages.door import BadInput, run
from stages.files import replacing, write_json, write_text
from stages.params import load
from stages.report.figures import figures
from stages.report.page import Report, render
from stages.report.results import read_history, read_result
from stages.report.scorecard import failures, scorecard, summary
from stages.targets import Targets


def main(train: str, card_file: str, summary_file: str, page: str, plots: str) -> None:
    """Read each layer's files in TRAIN; write the scorecard, the summary, the page and a folder of pictures."""
    layers, targets, fetch = load("layers", list[int]), load("targets", Targets), load("fetch", dict)
    results = [read_result(Path(train) / f"{layer}.json") for layer in layers]
    histories = {layer: read_history(Path(train) / f"{layer}.csv") for layer in layers}

    card = scorecard(results, targets)
    pictures = figures(results, histories, targets)
    text = ", ".join(source["source"] for source in fetch["corpus"]["sources"])
    for name, png in pictures.items():
        with replacing(Path(plots) / f"{name}.png") as temporary:
            temporary.write_bytes(png)
    write_text(Path(page), render(results, card, pictures, targets, text, load("report", Report)))
    write_json(Path(summary_file), summary(results, card))
    write_json(Path(card_file), card)

    if targets.enforce and (failed := failures(card)):
        raise BadInput(f"{len(failed)} targets fail: {'; '.join(failed)}")


if __name__ == "__main__":
    run(main)
