"""Show one latent's card in the terminal: `python -m src.show 9 42`."""

import shutil
import sys
from pathlib import Path

from apps.show.card import card
from strata.interpretation.labels import open_named
from strata.run.door import run, whole_number


def main(layer: str, latent: str, root: str = "data/latents") -> None:
    """LAYER and LATENT: their numbers. ROOT: the folder that interpret wrote; beside it, in
    data/explained, is what explain did.

    Example: python -m src.show 9 42
    """
    number, folder = whole_number(latent, "the latent"), Path(root) / str(whole_number(layer, "the layer"))
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    print(card(open_named(folder), number, width, sys.stdout.isatty()), end="")


if __name__ == "__main__":
    run(main)
