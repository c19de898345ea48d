"""How well an explanation that knows nothing may do."""

from math import sqrt

SURE = 2.33  # standard errors that one guess in a hundred lies above 0.5


def luck(contexts: int) -> float:
    """Return how far above 0.5 a balanced accuracy may well be by luck: one guess in a hundred gets further.

    Of n contexts, of which half are active, guesses get 0.5 with a standard error of about 1 / √(4 n).
    """
    return SURE / sqrt(4 * contexts)
