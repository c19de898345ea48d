"""Tab: show curves, the scorecard against the targets, and experiments beside each other."""

from pathlib import Path

import pandas as pd
import streamlit as st

from apps.dashboard import charts, experiments
from apps.dashboard.view import View
from apps.dashboard.widgets import choice, csv, slider, switch, table
from stages.train.read import read_history
from strata.run.files import read_json

ORDER = ["fvu", "mse", "loss", "l0", "dead", "lr", "score"]
VALIDATION = "validation_"  # begins the name of a measure on validation rows


def show(view: View) -> None:
    reports = view.project.reports
    _curves(reports)
    st.divider()
    _scorecard(reports / "scorecard.json")
    st.divider()
    _experiments(view)


def _experiments(view: View) -> None:
    """Show every experiment that MLflow holds: a measure along a param that differs, and a table."""
    st.subheader("Experiments")
    frame = view.of_files(experiments.experiments, "experiments", experiments.changed())
    if frame.empty:
        st.info("MLflow holds no experiment yet; `dvc repro` writes one.")
        return

    numbers = [name for name in frame.columns if pd.api.types.is_numeric_dtype(frame[name])]
    varied = [name for name in frame.columns if frame[name].nunique() > 1]
    headlines = [name for name in numbers if name.endswith("fvu_inlier")] or numbers
    left, right = st.columns(2)
    with left:
        x = choice("Along", varied or ["experiment"], (varied or ["experiment"])[0], "compare x")
    with right:
        y = choice("Measure", numbers, headlines[0], "compare y")
    if len(frame) > 1:
        st.altair_chart(charts.dots(frame[list(dict.fromkeys(["experiment", x, y]))], x, y))
    st.caption("Params that differ, and every number of the summary. `make ui` shows the same runs with their curves.")
    table(frame[list(dict.fromkeys(["experiment", "started", *varied, y]))], "experiments")


def _curves(reports: Path) -> None:
    """Show a measure along the steps of training, a line for each layer."""
    st.subheader("Curves")
    paths = sorted((reports / "train").glob("*.csv"), key=lambda path: (len(path.stem), path.stem))
    if not paths:
        st.info("The stage train has not run.")
        return
    histories = {path.stem: rows for path in paths if (rows := read_history(path))}
    if not histories:
        st.info("Nothing was trained: every SAE was given (train.from).")
        return

    frame = pd.concat([pd.DataFrame(rows).assign(layer=layer) for layer, rows in histories.items()], ignore_index=True)
    names = [name for name in ORDER if name in frame.columns]
    left, middle, right = st.columns([2, 2, 1])
    with left:
        name = choice("Measure", names, names[0], "curve")
    with middle:
        smooth = slider("Points in a mean", 1, 50, 1, "smooth")
    with right:
        log = switch("Logarithmic", True, "log")

    shown = _of_both_splits(frame, name, smooth)
    positive, dash = bool((shown[name] > 0).all()), "rows" if shown["rows"].nunique() > 1 else None
    st.altair_chart(charts.line(shown, "step", name, "layer", dash, log_y=log and positive, height=460))
    csv(frame, "curves")


def _of_both_splits(frame: pd.DataFrame, name: str, smooth: int) -> pd.DataFrame:
    """Return a measure along the steps of training, on training rows and, where it is known, on validation rows.

    ``smooth``: over how many points the curve is averaged.
    """
    parts = []
    for column, rows in ((name, "training"), (f"{VALIDATION}{name}", "validation")):
        if column in frame:
            known = frame[["step", "layer", column]].dropna()
            means = known.groupby("layer")[column].transform(lambda part: part.rolling(smooth, min_periods=1).mean())
            parts.append(known[["step", "layer"]].assign(rows=rows, **{name: means}))
    return pd.concat(parts, ignore_index=True)


def _scorecard(path: Path) -> None:
    """Show each target as a line, for every SAE and the controls beside it."""
    st.subheader("Scorecard")
    if not path.exists():
        st.info("The stage report has not run.")
        return

    card = read_json(path)
    st.caption(
        f"{card['passed']} targets pass, {card['failed']} fail; the controls beside each SAE should fail at least one."
    )
    lines = [{"what": "SAE", **line} for line in card["targets"]]
    lines += [{"what": line["control"], **line} for line in card["controls"]]
    frame = pd.DataFrame(lines)[["layer", "what", "metric", "value", "min", "max", "pass"]]
    verdict = {True: "✓ pass", False: "✗ fail"}
    frame["verdict"] = [verdict.get(value, "– not applicable") for value in frame.pop("pass")]
    table(frame, "scorecard", 14)
