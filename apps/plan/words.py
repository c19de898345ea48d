"""Put `key=value` words over params.yaml, as `dvc exp run -S` does."""

import json
from collections.abc import Iterable
from copy import deepcopy
from typing import Any

from strata.run.door import BadInput, BadUsage, near
from strata.run.params import shown

FACTS = ("width", "blocks", "parameters", "documents")  # words that describe a model or corpus that is not here yet
MOST = 10**15  # largest number that one of them may have


def split(words: Iterable[str]) -> tuple[dict[str, Any], dict[str, float]]:
    """Sort the words: return {key of params.yaml: value} and {one of FACTS: number}.

    A value is read as JSON (32, [3,6], null) if it is JSON, else as text (gpt2).
    """
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
    """Return ``values`` with ``changes`` (key -> value) put in.

    Raises BadInput for a key that params.yaml does not have, unless it begins with `+`.
    """
    values = deepcopy(values)
    for key, value in changes.items():
        adds = key.startswith("+")
        *path, last = parts = [_key(part, values["by_layer"]) for part in key.removeprefix("+").split(".")]

        # Walk down to the mapping that holds the last part of the key.
        section: Any = values
        for depth, part in enumerate(path):
            if not isinstance(section, dict) or (part not in section and not adds):
                raise BadInput(_unknown(key, value, parts, depth, section))
            section = section.setdefault(part, {})
        if not isinstance(section, dict) or (last not in section and not adds):
            raise BadInput(_unknown(key, value, parts, len(path), section))
        section[last] = value
    return values


def _unknown(key: str, value: Any, parts: list[str | int], depth: int, section: Any) -> str:
    """Write the message for a ``key`` that is not in params.yaml, with the key that was probably meant.

    ``section``: where the walk along ``parts`` ended, because it has no key ``parts[depth]``.
    """
    likely = near(str(parts[depth]), map(str, section)) if isinstance(section, dict) else ""
    if likely:
        meant = likely.removeprefix("; did you mean ").removesuffix("?")
        whole = ".".join(map(str, [*parts[:depth], meant, *parts[depth + 1 :]]))
        return f"{key} is not in params.yaml; did you mean {whole}?"
    if not isinstance(section, dict):
        above = ".".join(map(str, parts[:depth]))
        return f"{key} is not in params.yaml: {above} is {shown(section)}, which has no keys"
    return f"{key} is not in params.yaml; to add a key, write +{key}={value}"


def _key(part: str, by_layer: dict[Any, Any]) -> str | int:
    """Read one part of a key. A number is a layer in by_layer, whose keys are numbers, or text where DVC wrote them."""
    return int(part) if part.isdecimal() and part not in by_layer else part
