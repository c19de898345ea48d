"""Compare what two words of the command line name."""

from pathlib import Path

from apps.compare import folders, runs
from apps.compare.comparison import Comparison
from strata.run.door import BadInput, whole_number

ROWS = "data/activations"


def compare(a: str, b: str, of: str) -> Comparison:
    """Compare A and B, which are both SAE folders, or both experiments or commits.

    ``of``: the activations that SAE folders are judged on, or "" for those of the checkout; else the layer, or "" for
    all. Raises BadInput where the two are not of one kind.
    """
    kinds = [_are_folders(word) for word in (a, b)]
    if kinds[0] != kinds[1]:
        folder, other = (a, b) if kinds[0] else (b, a)
        raise BadInput(
            f"{folder} is a folder and {other} is none; compare two experiments or commits, or two SAE folders"
        )
    if kinds[0]:
        return folders.compare(a, b, Path(of or ROWS))
    return runs.compare(a, b, whole_number(of, "the layer") if of else None)


def _are_folders(word: str) -> bool:
    """Say whether a word names folders: one that is there, several with commas between them, or a pattern."""
    return "*" in word or any(Path(part).is_dir() for part in word.split(","))
