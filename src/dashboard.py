"""Look at finished artifacts in a browser: `python -m src.dashboard`, then http://127.0.0.1:8501."""

import os
import sys
from pathlib import Path

from apps.dashboard.artifacts import Project
from strata.run.door import run, whole_number

APP = Path(__file__).resolve().parents[1] / "apps" / "dashboard" / "app.py"


def main(data: str = "data", reports: str = "reports", port: str = "8501") -> None:
    """DATA, REPORTS: the folders of a project in which the pipeline has run. Only this machine can open the page.

    Example: python -m src.dashboard data reports 8501
    """
    whole_number(port, "the port", 1, 65535)
    Project(Path(data), Path(reports)).layers()  # raises BadInput where there is nothing to look at

    options = {
        "server.port": port,
        "server.address": "127.0.0.1",
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
        "theme.primaryColor": "#1f5fb4",
    }
    flags = [word for name, value in options.items() for word in (f"--{name}", value)]
    command = [sys.executable, "-m", "streamlit", "run", str(APP), *flags, "--", data, reports]
    os.execv(sys.executable, command)


if __name__ == "__main__":
    run(main)
