"""Read experiments from MLflow, a line for each, to compare them."""

from datetime import UTC, datetime
from typing import Any

import pandas as pd

from strata.experiments import tracking


def changed() -> int:
    """Return a number that changes when an experiment is added; 0 where there is no store yet, or it is a server."""
    path = tracking.database(tracking.address())
    return path.stat().st_mtime_ns if path is not None and path.exists() else 0


def experiments() -> pd.DataFrame:
    """Return a line for each experiment, the newest first: name, when it was started, params and numbers."""
    path = tracking.database(tracking.address())
    if path is not None and not path.exists():  # opening it would create it
        return pd.DataFrame()
    return pd.DataFrame([_line(run) for run in tracking.pipelines()])


def _line(run: Any) -> dict[str, Any]:
    """Return the line of an MLflow run."""
    started = datetime.fromtimestamp(run.info.start_time / 1000, UTC)
    params = {name: _value(text) for name, text in run.data.params.items()}
    return {"experiment": run.info.run_name, "started": f"{started:%Y-%m-%d %H:%M}", **params, **run.data.metrics}


def _value(text: str) -> float | str:
    """Read a param, which MLflow keeps as text, as a number if it is one."""
    try:
        return float(text)
    except ValueError:
        return text
