"""Carry names that people gave over to another SAE: `python -m src.relabel 9 FOLDER`."""

from pathlib import Path

from apps.label.label import carry
from strata.interpretation.given import FILE
from strata.run.door import run, whole_number


def main(layer: str, folder: str) -> None:
    """LAYER: its number. FOLDER: the SAE whose latents have names in labels.yaml, such as `dvc get . data/sae/9 --rev
    main --out old` brings. Its names are written for those latents of data/sae/LAYER that are alike.

    Example: python -m src.relabel 9 old
    """
    number = whole_number(layer, "the layer")
    found = carry(number, Path(folder), Path("data/sae") / str(number), Path(FILE))
    for one in found:
        if one.here is None:
            print(f"{one.there} {one.name!r}: no latent is like it")
        elif one.known:
            print(f"{one.there} {one.name!r}: {one.here} is like it ({one.cosine:.2f}), and has a name")
        else:
            print(f"{one.there} {one.name!r}: now of {one.here} ({one.cosine:.2f})")
    carried = sum(one.here is not None and not one.known for one in found)
    print(f"{FILE}: {carried} of {len(found)} names are carried over; pages get them by `dvc repro report`")


if __name__ == "__main__":
    run(main)
