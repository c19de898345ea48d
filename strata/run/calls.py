"""Checks of the arguments of Python calls: a wrong word, number or type raises BadInput, in one sentence that names the
argument."""

import math
from collections.abc import Collection, Iterable
from numbers import Integral, Real
from types import UnionType
from typing import Any, TypeVar

import torch

from strata.run.door import BadInput, near

T = TypeVar("T")


def choice(name: str, value: object, words: Collection[str], else_: str = "") -> None:
    """Refuse a ``value`` that is none of ``words``. ``else_``: what else is allowed, for the message."""
    if not (isinstance(value, str) and value in words):
        raise BadInput(
            f"{name} is {value!r}; it must be {' or '.join(map(repr, words))}{else_}{near(str(value), words)}"
        )


def whole(name: str, value: object, low: int, high: int | None = None) -> int:
    """Return ``value`` as an int from ``low`` to ``high``, or refuse it. True and 1.0 do not count as whole numbers."""
    number = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None
    if number is None or number < low or (high is not None and number > high):
        bounds = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise BadInput(f"{name} is {value!r}; it must be a whole number {bounds}")
    return number


def finite(name: str, value: object) -> None:
    """Refuse a ``value`` that is no finite number."""
    if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
        raise BadInput(f"{name} is {value!r}; it must be a finite number")


def of_kind(name: str, value: T, kind: type | UnionType, remedy: str) -> T:
    """Return ``value`` if it is of type ``kind``, else refuse it. ``remedy`` says what would be right."""
    if not isinstance(value, kind):
        raise BadInput(f"{name} is {a_thing(value)}; {remedy}")
    return value


def a_thing(value: object) -> str:
    """Describe ``value`` in a few words: ``None``, ``the text 'abc…'``, ``of type Series``."""
    if value is None or isinstance(value, bool | int | float | complex):
        return repr(value)
    if isinstance(value, str):
        return f"the text {value[:20] + '…' * (len(value) > 20)!r}"
    return f"of type {type(value).__name__}"


def device(value: object) -> torch.device:
    """Return the device that ``value`` names, cpu or cuda, or is; refuse one that this machine does not have."""
    try:
        checked = torch.device(value)  # pyright: ignore[reportArgumentType, reportCallIssue]  # a name, or a device
    except (RuntimeError, TypeError):
        raise BadInput(f"device is {value!r}; it must be cpu or cuda") from None
    if checked.type == "cuda" and not torch.cuda.is_available():
        raise BadInput(f"device is {value!r}, but torch finds no GPU here; it must be cpu")
    return checked


def one_a_row(name: str, value: Any, rows: int) -> list[str]:
    """Return ``value`` (a list, an array or a column of a table) as a list of ``rows`` texts, or refuse it.

    Numbers are written out, and a missing value (None, NaN) becomes "".
    """
    if isinstance(value, str | bytes | dict) or not isinstance(value, Iterable):
        raise BadInput(f"{name} is {a_thing(value)}; it must be a list, one a vector")
    texts = ["" if is_missing(item) else str(item) for item in value]
    if len(texts) != rows:
        raise BadInput(f"{len(texts)} {name} are given for {rows} vectors; there must be one each")
    return texts


def is_missing(value: object) -> bool:
    """Say whether ``value`` stands for nothing: None, NaN, pandas' NA or NaT."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, Real) and math.isnan(value)
