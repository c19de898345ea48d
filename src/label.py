"""Give a latent a name of your own: `python -m src.label 9 42 "months of the year"`."""

from pathlib import Path

from apps.label.label import label
from strata.interpretation.given import FILE
from strata.run.door import run, whole_number


def main(layer: str, latent: str, name: str) -> None:
    """LAYER and LATENT: their numbers. NAME: one line; "" takes the name away. It is written to labels.yaml, and stands
    on pages, map, dashboard, server and cards in place of what Strata found.

    Example: python -m src.label 9 42 "months of the year"
    """
    number, place = whole_number(layer, "the layer"), whole_number(latent, "the latent")
    sae = label(Path("data/latents") / str(number), place, name, Path(FILE))
    print(
        f"{FILE}: {sae} {place} {'is ' + name if name else 'has no name of yours'}; pages get it by `dvc repro report`"
    )


if __name__ == "__main__":
    run(main)
