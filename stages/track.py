"""Stage track: write the experiment's row in MLflow from its files."""

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

from stages.train.read import Result, read_history, read_result
from strata import auto
from strata.experiments.experiment import Experiment
from strata.experiments.tracking import track
from strata.run.files import read_json
from strata.run.params import load, read
from strata.tuning.read import curve, read_trials, taken

LINK = re.compile(r'<a\b[^>]*\bhref="latents/[^"]*"[^>]*>(.*?)</a>', re.DOTALL)  # of the report, to a latent's page
ALONE = '<p style="padding: 0 1rem">The latents have pages in report.zip, and this report has links to them there.</p>'


def main(tune: str, train: str, scorecard: str, summary: str, page: str, plots: str, latents: str) -> None:
    """TUNE's trials, each layer's result and history in TRAIN, SCORECARD, SUMMARY, the report's PAGE, its PLOTS and its
    pages of LATENTS -> the experiment's row in MLflow.

    Example: dvc repro track
    """
    params, layers, trials = read(), load("layers", list[int]), read_trials(Path(tune))
    results = {layer: read_result(Path(train) / f"{layer}.json") for layer in layers}

    histories = {"tune": curve(trials)} if trials else {}
    histories |= {f"train@{layer}": read_history(Path(train) / f"{layer}.csv") for layer in layers}
    # The other stages have numbers, but no curve over steps.
    others = ("controls", "stability", "interpret", "explain", "cluster", "merge", "invert", "steer_eval", "evaluate")
    for stage in others:
        histories |= {f"{stage}@{layer}": [] for layer in layers}

    with TemporaryDirectory() as folder:
        pages = archived(Path(page), Path(latents), Path(folder))
        track(
            Experiment(
                params=_settled(params, results[layers[0]]),
                sizes={layer: result.size for layer, result in results.items()},
                summary=read_json(Path(summary)),
                scorecard=read_json(Path(scorecard)),
                histories=histories,
                artifacts=[Path(scorecard), Path(summary), *pages, Path(plots), Path(tune)],
                tuned=taken(Path(tune) / "best.yaml", params["train"]["from_tune"]),
                trials=trials["trials"] if trials else [],
            )
        )


def archived(page: Path, latents: Path, folder: Path) -> list[Path]:
    """Write the report as MLflow can show it, into ``folder``: `report.html` by itself, and all pages in `report.zip`.

    MLflow shows a page in a frame in which no link to another file works, so `report.html` has none.
    """
    alone, whole = folder / page.name, folder / f"{page.stem}.zip"
    html = LINK.sub(r"\1", page.read_text(encoding="utf-8"))
    alone.write_text(re.sub(r"<body[^>]*>", lambda body: body[0] + ALONE, html, count=1), encoding="utf-8")

    with ZipFile(whole, "w", ZIP_DEFLATED) as archive:
        archive.write(page, page.name)
        for path in sorted(latents.rglob("*")):
            archive.write(path, Path("latents") / path.relative_to(latents))
    return [alone, whole]


def _settled(params: dict[str, Any], result: Result) -> dict[str, Any]:
    """Return params.yaml with numbers in place of `auto`: those that it became on the data of ``result``."""
    kind, fetch = result.size.kind, params["fetch"]
    return {
        **params,
        "fetch": {**fetch, "corpus": auto.filters(fetch["corpus"], kind)},
        "train": auto.train(params["train"], result.size),
        "targets": auto.targets(params["targets"], kind, result.k or 1, result.controls.get("pca")),
    }
