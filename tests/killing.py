"""A kill in the middle of a stage's work, without a process of its own: a function that does not come back."""

from collections.abc import Callable
from typing import Any

import pytest


class Killed(BaseException):
    """What the process does not outlive."""


def survives(monkeypatch: pytest.MonkeyPatch, place: Any, name: str, after: int) -> list[Any]:
    """From now on ``place.name`` works ``after`` times, then kills. Returns the list that its results go to."""
    real: Callable[..., Any] = getattr(place, name)
    results: list[Any] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        if len(results) >= after:
            raise Killed
        results.append(real(*args, **kwargs))
        return results[-1]

    monkeypatch.setattr(place, name, counted)
    return results
