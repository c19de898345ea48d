"""`key=value` words over params.yaml, as `dvc exp run -S` has them."""

import json
from collections.abc import Iterable
from copy import deepcopy
from typing import Any

from stages.door import BadInput

FACTS = ("width", "blocks", "parameters", "documents")  # of a model or text that is not here


def split(words: Iterable[str]) -> tuple[dict[str, Any], dict[str, float]]:
    """{key of params.yaml: value} and {one of FACTS: number}. Values are JSON, or else text: 32, [3,6], null, gpt2."""
    changes: dict[str, Any] = {}
    facts: dict[str, float] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not key or not equals:
            raise BadInput(f"{word!r} is no key=value, such as train.latents=16384 or width=768")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        if key in FACTS:
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 1:
                raise BadInput(f"{key} is {text!r}, not a number from 1 on")
            facts[key] = value
        else:
            changes[key] = value
    return changes, facts


def changed(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``values`` with ``changes`` put in; a key that is not there is refused, unless it begins with `+`."""
    values = deepcopy(values)
    for key, value in changes.items():
        parts = key.removeprefix("+").split(".")
        *path, last = [_key(part, values["by_layer"]) for part in parts]
        place: Any = values
        for part in path:
            if key.startswith("+") and isinstance(place, dict):
                place = place.setdefault(part, {})
            else:
                place = place.get(part) if isinstance(place, dict) else None
        if not isinstance(place, dict) or (last not in place and not key.startswith("+")):
            raise BadInput(f"{key} is not in params.yaml; to add a key, write +{key.removeprefix('+')}={value}")
        place[last] = value
    return values


def _key(part: str, by_layer: dict[Any, Any]) -> str | int:
    """by_layer's keys are numbers; as DVC writes them, text."""
    return int(part) if part.isdecimal() and part not in by_layer else part
