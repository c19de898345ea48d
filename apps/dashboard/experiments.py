"""Experiments as MLflow holds them: a line each, to compare."""

from datetime import UTC, datetime
from typing import Any

import pandas as pd

from strata.experiments import tracking


def changed() -> int:
    """Another number when an experiment has been added; 0 where there is no store yet, or a server."""
    path = tracking.database(tracking.address())
    return path.stat().st_mtime_ns if path is not None and path.exists() else 0


def experiments() -> pd.DataFrame:
    """A line an experiment, the newest first: its name, when it was started, its params and its numbers."""
    path = tracking.database(tracking.address())
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
