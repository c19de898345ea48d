"""Layers that are named by a word instead of by their numbers."""

import re

from strata.run.door import BadInput
from strata.run.params import shown

EVERY = re.compile(r"every ([1-9]\d*)")


def named(word: str, depth: int) -> list[int]:
    """The layers that ``word`` means in a model with ``depth`` blocks: all, or every 3rd one from the first.

    >>> named("every 3", 12)
    [0, 3, 6, 9]
    """
    every = EVERY.fullmatch(word)
    if word != "all" and not every:
        raise BadInput(f"layers is {shown(word)}; it must be a list of layers, 'all' or 'every 3'")
    return list(range(0, depth, int(every[1]) if every else 1))
