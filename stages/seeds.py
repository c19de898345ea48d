"""Random numbers of their own for each thing that draws some, whatever else is drawn."""

import hashlib

import torch

from stages.door import BadInput

LAST = 2**32 - 1  # scikit-optimize's generators take no larger seed


def check_seed(seed: int) -> int:
    """``seed``, or BadInput where it is none."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= LAST:
        raise BadInput(f"seed is {seed!r}; it must be a whole number from 0 to {LAST}")
    return seed


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A stream that depends on ``seed`` and ``names`` alone."""
    digest = hashlib.sha256(repr((seed, *names)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:6]))
