"""Look at finished artifacts in a browser: `python -m src.dashboard`, then http://127.0.0.1:8501."""

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
    project = Project(Path(data), Path(reports))
    project.layers()  # raises BadInput where there is nothing to look at

    # All that the tabs need is imported before the server answers, so that the first page need not wait for it.
    from apps.dashboard import server

    sys.argv[1:] = [data, reports]  # which app.py reads
    server.start(APP, project, int(port))


if __name__ == "__main__":
    run(main)
