"""Stage extract_texts: do what extract does, on the other text that interpret looks at."""

from stages import extract


def main(lm: str, corpus: str, layers: str, target: str) -> None:
    """LM and CORPUS: what fetch wrote; LAYERS: what select wrote of the layers to store; TARGET: the folder that gets
    `<layer>/` for each of them, and `tokens/`.

    Example: dvc repro extract_texts
    """
    extract.main(lm, corpus, layers, target)
