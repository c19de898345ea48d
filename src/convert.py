"""An SAE in another format: `python -m src.convert data/sae/9 shared/` writes encoder.npz and decoder.npz."""

from pathlib import Path

from stages import npz
from stages.door import run
from stages.sae import disk


def main(sae: str, target: str) -> None:
    """SAE: its folder; TARGET: the folder that gets the arrays, which numpy alone can read."""
    coder, config = disk.load(Path(sae))
    npz.save(Path(target), coder, config["metadata"])


if __name__ == "__main__":
    run(main)
