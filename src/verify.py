"""Check the hash of every activation shard: `python -m src.verify`."""

from pathlib import Path

from strata.rows.shards import verify
from strata.run.door import BadInput, run


def main(root: str = "data/activations") -> None:
    """ROOT: the folder that extract wrote. Prints how many files of each layer are as they were written.

    Example: python -m src.verify
    """
    folders = sorted(path.parent for path in Path(root).glob("*/meta.json"))
    if not folders:
        raise BadInput(f"{root} holds no complete activations; run extract (`dvc repro extract`)")
    for folder in folders:
        print(f"{folder}: {verify(folder)} files have the hashes that meta.json says")


if __name__ == "__main__":
    run(main)
