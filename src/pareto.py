"""Draw what sparsity costs, over the finished experiments of this commit: `python -m src.pareto`, after a sweep."""

import subprocess
import sys
from pathlib import Path

from apps.pareto.page import render
from apps.pareto.pictures import picture
from apps.pareto.points import by_layer, parse, read_points, table
from strata.run.door import BadInput, run
from strata.run.files import write_bytes, write_text


def main(target: str = "reports/pareto") -> None:
    """TARGET: the folder that gets `<layer>.png`; beside it come `<target>.csv` and `<target>.html`.

    Example: python -m src.pareto
    """
    shown = subprocess.run([sys.executable, "-m", "dvc", "exp", "show", "--json"], capture_output=True, text=True)
    if shown.returncode:
        raise BadInput(f"`dvc exp show` ended with: {' '.join(shown.stderr.split())}")
    points = read_points(parse(shown.stdout))

    folder = Path(target)  # without the slash that may end a word
    for stale in folder.glob("*.png"):
        stale.unlink()
    pictures = {layer: picture(of_layer) for layer, of_layer in by_layer(points).items()}
    for layer, png in pictures.items():
        write_bytes(folder / f"{layer}.png", png)
    write_text(Path(f"{folder}.csv"), table(points))
    write_text(Path(f"{folder}.html"), render(points, pictures))
    print(f"{len(points)} SAEs: {folder}.html, {folder}.csv and {folder}/")


if __name__ == "__main__":
    run(main)
