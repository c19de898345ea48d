"""Carry names that people gave over to the latents of another training: `python -m src.relabel 9 FOLDER`."""

from pathlib import Path

from apps.label.label import carry
from strata.interpretation.labels import FILE
from strata.run.door import run, whole_number


def main(layer: str, folder: str) -> None:
    """LAYER: its number. FOLDER: the SAE whose latents have names in labels.yaml, such as the one that
    `dvc get . data/sae/9 --rev main --out /tmp/old` brings. Each name is written for the latent of data/sae/LAYER whose
    decoder row is most like that of the old one, if their cosine is above 0.7.

    Example: python -m src.relabel 9 /tmp/old
    """
    number = whole_number(layer, "the layer")
    results = carry(number, Path(folder), Path("data/sae") / str(number), Path(FILE))
    for name, latent, partner, cosine, own in results:
        if partner is None:
            print(f"{latent} {name!r}: no partner")
        elif own is not None:
            print(f"{latent} {name!r}: its partner {partner} (cosine {cosine:.2f}) is {own!r}, and stays so")
        else:
            print(f"{latent} {name!r}: now the name of {partner} (cosine {cosine:.2f})")
    carried = sum(one.partner is not None and one.own is None for one in results)
    print(f"{FILE}: {carried} of {len(results)} names are carried over; `dvc repro report` for pages")


if __name__ == "__main__":
    run(main)
