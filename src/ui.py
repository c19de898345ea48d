"""Open MLflow in a browser, on the runs: `python -m src.ui`, or `make ui`."""

import os
import sys

from strata.experiments import tracking
from strata.run.door import run, whole_number


def main(port: str = "5000") -> None:
    """Start MLflow's own page on this machine, at PORT, and print the address of the runs.

    Example: python -m src.ui 5000
    """
    whole_number(port, "the port", 1, 65535)
    uri, experiment = tracking.opened()
    runs = f"#/experiments/{experiment}/runs?workflowType=machine_learning&viewStateShareKey={tracking.VIEW}"
    if uri.startswith(("http:", "https:")):
        print(f"The runs are on the server of MLFLOW_TRACKING_URI, under /{runs}")
        return

    print(f"The runs: http://127.0.0.1:{port}/{runs}", flush=True)
    os.environ["MLFLOW_BACKEND_STORE_URI"] = uri  # other users of this machine could read it on the command line
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "ui", "--port", port, "--workers", "1"])


if __name__ == "__main__":
    run(main)
