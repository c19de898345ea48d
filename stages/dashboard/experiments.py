"""Experiments as MLflow holds them: a line each, to compare."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from stages import tracking
from stages.resume import main_root

SQLITE = "sqlite:///"


def database() -> Path | None:
    """The file behind the store; None where it is a server."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db"
    return main_root() / uri.removeprefix(SQLITE) if uri.startswith(SQLITE) else None


def changed() -> int:
    """Another number when an experiment has been added; 0 where there is no store yet, or a server."""
    path = database()
    return path.stat().st_mtime_ns if path is not None and path.exists() else 0


def experiments() -> pd.DataFrame:
    """A line an experiment, the newest first: its name, when it was started, its params and its numbers."""
    path = database()
    if path is not None and not path.exists():  # to open it would make one
        return pd.DataFrame()
    return pd.DataFrame([_line(run) for run in tracking.pipelines()])


def _line(run: Any) -> dict[str, Any]:
    started = datetime.fromtimestamp(run.info.start_time / 1000, UTC)
    params = {name: _value(text) for name, text in run.data.params.items()}
    return {"experiment": run.info.run_name, "started": f"{started:%Y-%m-%d %H:%M}", **params, **run.data.metrics}


def _value(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
