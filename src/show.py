"""One latent's card in the terminal: `python -m src.show 9 42`."""

import shutil
import sys
from pathlib import Path

from stages.door import BadInput, run
from stages.interpret.read import open_latents
from stages.show.card import card


def main(layer: str, latent: str, root: str = "data/latents") -> None:
    """LAYER and LATENT: their numbers. ROOT: the folder that interpret wrote.

    Example: python -m src.show 9 42
    """
    for name, word in (("layer", layer), ("latent", latent)):
        if not (word.isascii() and word.isdecimal()):
            raise BadInput(f"the {name} is {word!r}, not a whole number")
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    print(card(open_latents(Path(root) / layer), int(latent), width, sys.stdout.isatty()), end="")


if __name__ == "__main__":
    run(main)
