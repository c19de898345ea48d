"""What a Python call is given, checked where it comes in: another word, number or kind of thing than is meant raises
BadInput, one sentence with the argument's name."""

import math
from collections.abc import Collection, Iterable
from numbers import Integral, Real
from types import UnionType
from typing import Any, TypeVar

import torch

from strata.run.door import BadInput, near

T = TypeVar("T")


def choice(name: str, value: object, words: Collection[str], else_: str = "") -> None:
    """Refuse what is none of ``words``. ``else_``: what may stand there besides."""
    if not (isinstance(value, str) and value in words):
        raise BadInput(
            f"{name} is {value!r}; it must be {' or '.join(map(repr, words))}{else_}{near(str(value), words)}"
        )


def whole(name: str, value: object, low: int, high: int | None = None) -> int:
    """``value`` as an int from ``low`` to ``high``; True and 1.0 are no whole numbers here."""
    number = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None
    if number is None or number < low or (high is not None and number > high):
        bounds = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise BadInput(f"{name} is {value!r}; it must be a whole number {bounds}")
    return number


def finite(name: str, value: object) -> None:
    """Refuse what is no finite number."""
    if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
        raise BadInput(f"{name} is {value!r}; it must be a finite number")


def of_kind(name: str, value: T, kind: type | UnionType, remedy: str) -> T:
    """``value``, which must be a ``kind``. ``remedy``: what would be right."""
    if not isinstance(value, kind):
        raise BadInput(f"{name} is {a_thing(value)}; {remedy}")
    return value


def a_thing(value: object) -> str:
    """What ``value`` is, short: ``None``, ``the text 'abc…'``, ``of type Series``."""
    if value is None or isinstance(value, bool | int | float | complex):
        return repr(value)
    if isinstance(value, str):
        return f"the text {value[:20] + '…' * (len(value) > 20)!r}"
    return f"of type {type(value).__name__}"


def device(value: object) -> torch.device:
    """``value`` as a device that is there: a torch.device, or its name, cpu or cuda."""
    try:
        found = torch.device(value)  # pyright: ignore[reportArgumentType, reportCallIssue]  # a name, or a device
    except (RuntimeError, TypeError):
        raise BadInput(f"device is {value!r}; it must be cpu or cuda") from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise BadInput(f"device is {value!r}, but torch finds no GPU here; it must be cpu")
    return found


def one_a_row(name: str, value: Any, rows: int) -> list[str]:
    """``value`` as a list of ``rows`` texts: a list, an array, a column of a table; numbers are written out, and what
    is missing (None, NaN) is ""."""
    if isinstance(value, str | bytes | dict) or not isinstance(value, Iterable):
        raise BadInput(f"{name} is {a_thing(value)}; it must be a list, one a vector")
    found = ["" if is_missing(item) else str(item) for item in value]
    if len(found) != rows:
        raise BadInput(f"{len(found)} {name} are given for {rows} vectors; there must be one each")
    return found


def is_missing(value: object) -> bool:
    """Whether it stands for nothing: None, NaN, pandas' NA and NaT."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, Real) and math.isnan(value)
