"""`key=value` words over params.yaml, as `dvc exp run -S` has them."""

import json
from collections.abc import Iterable
from copy import deepcopy
from typing import Any

from strata.run.door import BadInput, BadUsage, near
from strata.run.params import shown

FACTS = ("width", "blocks", "parameters", "documents")  # of a model or text that is not here
MOST = 10**15  # of each of them


def split(words: Iterable[str]) -> tuple[dict[str, Any], dict[str, float]]:
    """{key of params.yaml: value} and {one of FACTS: number}. Values are JSON, or else text: 32, [3,6], null, gpt2."""
    changes: dict[str, Any] = {}
    facts: dict[str, float] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not key or not equals:
            raise BadUsage(f"{word!r} is no key=value, such as train.latents=16384 or width=768")
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = text
        if key in FACTS:
            number = value if isinstance(value, int | float) and not isinstance(value, bool) else 0
            if not 1 <= number <= MOST or number != int(number):
                raise BadUsage(f"{key} is {shown(text)}, not a whole number from 1 to {MOST:g}")
            facts[key] = number
        else:
            changes[key] = value
    return changes, facts


def changed(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``values`` with ``changes`` put in; a key that is not there is refused, unless it begins with `+`."""
    values = deepcopy(values)
    for key, value in changes.items():
        adds = key.startswith("+")
        *path, last = parts = [_key(part, values["by_layer"]) for part in key.removeprefix("+").split(".")]
        place: Any = values
        for depth, part in enumerate(path):
            if not isinstance(place, dict) or (part not in place and not adds):
                raise BadInput(_unknown(key, value, parts, depth, place))
            place = place.setdefault(part, {})
        if not isinstance(place, dict) or (last not in place and not adds):
            raise BadInput(_unknown(key, value, parts, len(path), place))
        place[last] = value
    return values


def _unknown(key: str, value: Any, parts: list[str | int], depth: int, place: Any) -> str:
    """That ``key``, whose part at ``depth`` is not in ``place``, is not there, and what may have been meant."""
    likely = near(str(parts[depth]), map(str, place)) if isinstance(place, dict) else ""
    if likely:
        meant = likely.removeprefix("; did you mean ").removesuffix("?")
        whole = ".".join(map(str, [*parts[:depth], meant, *parts[depth + 1 :]]))
        return f"{key} is not in params.yaml; did you mean {whole}?"
    if not isinstance(place, dict):
        return f"{key} is not in params.yaml: {'.'.join(map(str, parts[:depth]))} is {shown(place)}, which has no keys"
    return f"{key} is not in params.yaml; to add a key, write +{key}={value}"


def _key(part: str, by_layer: dict[Any, Any]) -> str | int:
    """by_layer's keys are numbers; as DVC writes them, text."""
    return int(part) if part.isdecimal() and part not in by_layer else part
