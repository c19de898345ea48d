"""Say whether A is better than B, two experiments, commits or groups of SAEs: `python -m src.compare A B`."""

import shutil
import sys
from pathlib import Path

from apps.compare.compare import compare
from apps.compare.page import render
from apps.compare.table import as_csv, as_text
from strata.run.door import run
from strata.run.files import write_text


def main(a: str, b: str, of: str = "", target: str = "reports/compare") -> None:
    """A and B: an experiment or a commit, whose runs with other seeds join it; or SAE folders of several seeds, with
    commas between them. OF: the layer, else all of them; for SAE folders the activations that they are judged on, else
    those in data/activations. TARGET: the folder that gets `index.html` and `metrics.csv`.

    Example: python -m src.compare main k64 9
    """
    comparison = compare(a, b, of)
    write_text(Path(target) / "index.html", render(comparison))
    write_text(Path(target) / "metrics.csv", as_csv(comparison))
    print(as_text(comparison, min(shutil.get_terminal_size((100, 24)).columns, 120), sys.stdout.isatty()), end="")
    print(f"\n{target}/index.html, {target}/metrics.csv")


if __name__ == "__main__":
    run(main)
