"""Give a latent a name of your own: `python -m src.label 9 42 "months of the year"`."""

from pathlib import Path

from apps.label.label import label
from strata.interpretation.labels import FILE
from strata.run.door import BadUsage, run, whole_number


def main(*words: str) -> None:
    """WORDS: the numbers of a layer and of a latent, and its name, which is one line; "" takes the name away. It is
    written to labels.yaml, and stands on pages, map, dashboard, server and cards in place of what Strata found.

    Example: python -m src.label 9 42 "months of the year"
    """
    if len(words) != 3:
        raise BadUsage(f"{len(words)} words where three are wanted: a layer, a latent, and its name in quotes")
    layer, latent, name = whole_number(words[0], "the layer"), whole_number(words[1], "the latent"), words[2]
    sae = label(Path("data/latents") / str(layer), latent, name, Path(FILE))
    print(f"{FILE}: latent {latent} of {sae} {f'is {name!r}' if name else 'has no name'}; `dvc repro report` for pages")


if __name__ == "__main__":
    run(main, options=True)
