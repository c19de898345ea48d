"""The values of knobs that a call does not name: those of params.yaml, which a wheel of Strata carries."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from strata.run import params

T = TypeVar("T")

INSTALLED, CHECKOUT = Path(__file__).parents[0] / "params.yaml", Path(__file__).parents[1] / "params.yaml"


def section(name: str) -> dict[str, Any]:
    """A section of params.yaml as plain values."""
    return params.read(INSTALLED if INSTALLED.is_file() else CHECKOUT)[name]


def knobs(name: str, kind: type[T], changes: Mapping[str, Any]) -> T:
    """The section ``name`` with ``changes``, checked. Raises BadInput for a knob or value that there is not.

    A nested section is changed key by key: ``examples={"top": 5}`` leaves the other kinds of examples as they are.
    """
    return params.check(changed(section(name), changes), kind, name)


def changed(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with ``changes`` over them, key by key where both are mappings.

    >>> changed({"k": 8, "map": {"of": "families", "spread": 0.1}}, {"map": {"spread": 0.5}})
    {'k': 8, 'map': {'of': 'families', 'spread': 0.5}}
    """
    merged = dict(values)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = changed(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged
