"""What counts as a vector, wherever it comes from."""

import json
from typing import Any

import numpy as np

from stages.params import Blob

NULL, NOTHING, WILD = "NULL", "no list of numbers", "NaN or infinity"


def parsed(value: Any, blob: Blob = "float32") -> bytes | str:
    """A vector as float32 bytes, or what is wrong with it.

    Lists, arrays, JSON (which pgvector's text is) and BLOBs of ``blob``, little-endian, are understood.
    """
    if value is None:
        return NULL
    try:
        if isinstance(value, str):
            value = json.loads(value)
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite
            if isinstance(value, bytes | memoryview):
                found = np.frombuffer(value, "<f8" if blob == "float64" else "<f4").astype("<f4")
            else:
                found = np.asarray(value, np.float64).astype("<f4")
    except (ValueError, TypeError, OverflowError, RecursionError):
        return NOTHING
    if found.ndim != 1 or not found.size:
        return NOTHING
    return found.tobytes() if np.isfinite(found).all() else WILD
