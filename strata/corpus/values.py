"""The meaning of one value of a row, whether the row comes from a file, an array, a database or a hub dataset."""

import re
from datetime import date
from decimal import Decimal
from typing import Any

import numpy as np

_SURROGATES = re.compile("[\ud800-\udfff]")  # halves of characters, which JSON can hold and UTF-8 cannot


def missing(value: Any) -> bool:
    """Say whether ``value`` stands for nothing: None, NaN, pandas' NaT or NA, or a text of nothing but white space."""
    if value is None or type(value).__name__ == "NAType":  # pandas' NA: its name, so that pandas need not be imported
        return True
    if isinstance(value, str | bytes | bytearray | memoryview):
        return not (value if isinstance(value, str) else bytes(value)).strip()
    if isinstance(value, float | Decimal | date | np.generic):
        return bool(value != value)  # as NaN and NaT do
    return False


def text(value: Any) -> str:
    """Read ``value`` as a text; "" where it is missing. Bytes are UTF-8, and half a character becomes U+FFFD.

    Raises ValueError, whose message describes the value, for anything but text.
    """
    if missing(value):
        return ""
    if isinstance(value, bytes | bytearray | memoryview):
        value = _decoded(bytes(value))
    if not isinstance(value, str):
        raise ValueError(f"{_shown(value)}, which is not text")
    return _SURROGATES.sub("\ufffd", value)


def word(value: Any) -> str | None:
    """Read ``value`` as a label, title or id; None where it is missing. A whole number is written as 3, not 3.0.

    Raises ValueError, whose message describes the value, for bytes that are not UTF-8, and for a list, a dictionary or
    an array.
    """
    if missing(value):
        return None
    if isinstance(value, np.generic) and not isinstance(value, np.datetime64):  # whose item() may be a bare number
        value = value.item()
    if isinstance(value, list | tuple | set | dict | np.ndarray):
        raise ValueError(f"{_shown(value)}, which is not one value")
    if isinstance(value, Decimal):
        value = format(value.normalize(), "f")  # 3 for 3.00, as for the float 3.0
    elif isinstance(value, float) and value.is_integer():
        value = int(value)
    return text(value if isinstance(value, str | bytes | bytearray | memoryview) else str(value)).strip()


def _decoded(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise ValueError(f"the bytes {value[:20]!r}, which are not UTF-8") from None


def _shown(value: Any) -> str:
    """Describe a value for a message: its first 40 characters, or only the type of a list, dictionary or array."""
    if isinstance(value, list | tuple | set | dict | np.ndarray):
        return f"a {type(value).__name__}"
    return repr(value)[:40]
