"""A recipe: a YAML file with those keys of params.yaml that differ, and the line of the file on which each stands."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from strata.run.door import near
from strata.run.params import lines_of, read_yaml

HOME = Path("recipes")
SUFFIXES = (".yaml", ".yml")
# Mappings whose keys are the user's own. What a recipe writes there takes the place of all that params.yaml has.
REPLACED = {("by_layer",), ("tune", "space")}

Key = tuple[str, ...]  # also of what a list holds: ("layers", "0")


@dataclass(frozen=True)
class Recipe:
    """``values``: what the file says. ``lines``: ("train", "k") -> 7."""

    path: Path
    values: dict[str, Any]
    lines: dict[Key, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What an experiment of it is called: `sentences`."""
        return self.path.stem

    def leaves(self) -> list[Key]:
        """The keys that have values of their own, not other keys."""
        return [key for key, _ in leaves(self.values)]

    def without(self, key: Key) -> dict[str, Any]:
        """The values but for the one at ``key``."""
        return _without(self.values, key)


NONE = Recipe(Path("params.yaml"), {})  # where nothing but -S is said


def there() -> list[str]:
    """The recipes of this checkout."""
    return sorted(str(path) for path in HOME.glob("*.yaml"))


def is_recipe(word: str) -> bool:
    """Whether a word of the command line names a recipe."""
    return word.endswith(SUFFIXES) and "=" not in word


def read(path: Path) -> Recipe:
    """Read a recipe. Raises BadInput for a file that is missing, or no YAML."""
    others = there()
    values = read_yaml(path, f"the recipes are {', '.join(others)}{near(str(path), others)}")
    if isinstance(by_layer := values.get("by_layer"), dict):
        values["by_layer"] = {str(layer): knobs for layer, knobs in by_layer.items()}  # as DVC writes it
    return Recipe(path, values, lines_of(path.read_text(encoding="utf-8")))


def leaves(values: Mapping[Any, Any], above: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Key and value of what ``values`` changes: a mapping that is replaced as a whole is one of them."""
    for name, value in values.items():
        key = (*above, str(name))
        if isinstance(value, Mapping) and value and key not in REPLACED:
            yield from leaves(value, key)
        else:
            yield key, value


def over(values: Mapping[str, Any], changes: Mapping[str, Any], above: Key = ()) -> dict[str, Any]:
    """``values`` of params.yaml with ``changes`` over them, key by key where both hold keys.

    >>> over({"train": {"k": 80, "lr": 0.1}, "by_layer": {"3": {"k": 1}}}, {"train": {"k": 8}, "by_layer": {}})
    {'train': {'k': 8, 'lr': 0.1}, 'by_layer': {}}
    """
    merged = dict(values)
    for name, value in changes.items():
        key, old = (*above, str(name)), merged.get(name)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and key not in REPLACED:
            merged[name] = over(old, value, key)
        else:
            merged[name] = value
    return merged


def _without(values: dict[str, Any], key: Key) -> dict[str, Any]:
    first, *inner = key
    kept = {name: value for name, value in values.items() if str(name) != first}
    left = _without(values[first], tuple(inner)) if inner else {}
    return {**kept, first: left} if left else kept
