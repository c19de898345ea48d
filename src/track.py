"""Write the experiment's row in MLflow from its files."""

from pathlib import Path

from stages.door import run
from stages.experiment import Experiment
from stages.files import read_json
from stages.params import load, read
from stages.report.results import read_history
from stages.tracking import track
from stages.tune.read import curve, read_trials, taken


def main(tune: str, train: str, scorecard: str, summary: str, page: str, plots: str) -> None:
    """Read TUNE's trials, each layer's history in TRAIN, the scorecard and the summary; show them with the page and its
    pictures.

    Example: dvc repro track
    """
    params, trials = read(), read_trials(Path(tune))
    track(
        Experiment(
            params=params,
            summary=read_json(Path(summary)),
            scorecard=read_json(Path(scorecard)),
            histories={
                **({"tune": curve(trials)} if trials else {}),
                **{f"train@{layer}": read_history(Path(train) / f"{layer}.csv") for layer in load("layers", list[int])},
                # numbers, but no curve over steps
                **{
                    f"{stage}@{layer}": []
                    for stage in ("interpret", "cluster", "merge", "invert", "steer_eval", "evaluate")
                    for layer in load("layers", list[int])
                },
            },
            artifacts=[Path(scorecard), Path(summary), Path(page), Path(plots), Path(tune)],
            tuned=taken(Path(tune) / "best.yaml", params["train"]["from_tune"]),
            trials=trials["trials"] if trials else [],
        )
    )


if __name__ == "__main__":
    run(main)
