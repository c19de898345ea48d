"""What counts as a vector, wherever it comes from."""

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strata.corpus.values import missing
from strata.run.params import Blob
from strata.tables import arrays

NULL, NOTHING, WILD = "NULL", "no list of numbers", "NaN or infinity"

# Other things that a BLOB may be, and what to do about them.
KINDS = {
    "<f8": "numbers of float64, it seems: set blob: float64",
    "<f4": "numbers of float32, it seems: set blob: float32",
    "<f2": "numbers of float16, it seems: write them as float32",
    ">f4": "big-endian numbers, it seems: write them as little-endian float32",
    ">f8": "big-endian numbers, it seems: write them as little-endian float32",
}
PACKED = (b"PK\x03\x04", b"\x1f\x8b\x08\x00", b"\x80\x04\x95", b"\x80\x05\x95")  # a zip (.npz), gzip, Python objects
JUDGED = 16  # numbers, from which on a BLOB of another kind is recognised
TEXT = 32  # bytes of which each is a letter, digit or sign: no numbers


def parsed(value: Any, blob: Blob | None = None) -> bytes | str:
    """Read a vector; return it as float32 bytes, or a text that says what is wrong with it.

    ``value`` may be a list, an array, JSON (pgvector writes its text in it), what `np.save` wrote, or a BLOB of
    little-endian numbers. A BLOB holds float32 unless ``blob`` names another type. It is refused where its numbers make
    no sense as that type, but do as another.
    """
    try:
        if isinstance(value, str):
            value = None if missing(value) else json.loads(value)
        elif isinstance(value, bytes | bytearray | memoryview):
            value = _of_bytes(bytes(value), blob)
        if isinstance(value, str) and value in KINDS.values():
            return value
        if missing(value):
            return NULL

        numbers = _numbers(value)
        if numbers.ndim != 1 or not numbers.size:
            return NOTHING
        with np.errstate(over="ignore"):  # a number that float32 cannot hold becomes infinite
            vector = numbers.astype("<f4")
    except (*arrays.BROKEN, OverflowError):
        return NOTHING
    return vector.tobytes() if np.isfinite(vector).all() else WILD


def _numbers(value: Any) -> NDArray[Any]:
    """Make an array of a list or array of real numbers; None among them becomes NaN.

    Raises ValueError for texts, complex numbers and dates, which numpy would turn into numbers.
    """
    numbers = np.asarray(value)
    if numbers.dtype.kind == "O" and not any(isinstance(item, str | bytes | complex) for item in numbers.flat):
        numbers = numbers.astype(np.float64)
    if numbers.dtype.kind not in "fiub":
        raise ValueError(f"{numbers.dtype} is no kind of real number")
    return numbers


def _of_bytes(content: bytes, blob: Blob | None) -> Any:
    """Read a BLOB: an array, a list or None; or a sentence of KINDS, where another type of numbers fits it instead.

    Raises one of BROKEN.
    """
    if not content:
        return None
    if content.startswith(arrays.MAGIC):
        return arrays.of_bytes(content)
    if content.startswith(PACKED):
        raise ValueError("a packed file is no list of numbers")
    if content[:1] == b"[" and content[-1:] == b"]" and content.isascii():
        return json.loads(content)
    if len(content) >= TEXT and content.isascii() and content.decode().isprintable():
        raise ValueError("a text is no list of numbers")

    kind = "<f8" if blob == "float64" else "<f4"
    numbers = np.frombuffer(content, kind)
    if len(numbers) >= JUDGED:
        if _wild(numbers) > 0.08:
            other_kinds = (other for other in KINDS if other != kind and not len(content) % np.dtype(other).itemsize)
            fitting = next((other for other in other_kinds if _wild(np.frombuffer(content, other)) < 0.01), None)
            if fitting:
                return KINDS[fitting]
        # Whole numbers, and numbers that were float16, leave the lower half of each float64 zero.
        if blob is None and not numbers[::2].any() and np.count_nonzero(numbers) >= 24 and not len(content) % 8:
            return KINDS["<f8"]
    return numbers


def _wild(numbers: NDArray[Any]) -> float:
    """Compute the share of the numbers, zeros aside, that are over 2^16 times as large or small as the median one.

    It is 1 if a number is not finite. It is near 0 where the bytes were read as the type that they have. Where bytes of
    float64 are read as float32, every other number has a random exponent, and the share is large.
    """
    span = 2.0 ** (8 if numbers.dtype.itemsize == 2 else 16)  # float16 has not many exponents, so that more would fit
    with np.errstate(over="ignore", invalid="ignore"):
        sizes = np.abs(numbers.astype(np.float64))
        sizes = sizes[sizes != 0]
        if not np.isfinite(sizes).all():
            return 1.0
        if not sizes.size or sizes.max() <= sizes.min() * span:
            return 0.0
        median = np.median(sizes)
        return float(((sizes > median * span) | (sizes < median / span)).mean())
