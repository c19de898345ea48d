"""Read a recipe: a YAML file with the keys of params.yaml that differ, and the line of the file for each key."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from strata.run.door import near
from strata.run.params import lines_of, read_yaml

HOME = Path("recipes")
SUFFIXES = (".yaml", ".yml")
# Mappings whose keys the user chooses. What a recipe writes there replaces all that params.yaml has there.
REPLACED = {("by_layer",), ("tune", "space")}

Key = tuple[str, ...]  # ("train", "k"); an item of a list has a key, too: ("layers", "0")


@dataclass(frozen=True)
class Recipe:
    """A recipe. ``values``: what the file says. ``lines``: key -> line of the file, ("train", "k") -> 7."""

    path: Path
    values: dict[str, Any]
    lines: dict[Key, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of its experiments: `sentences` for recipes/sentences.yaml."""
        return self.path.stem

    def leaves(self) -> list[Key]:
        """List the keys that hold a value, not further keys."""
        return [key for key, _ in leaves(self.values)]

    def without(self, key: Key) -> dict[str, Any]:
        """Return the values without the one at ``key``."""
        return _without(self.values, key)


NONE = Recipe(Path("params.yaml"), {})  # stands for no recipe, where the user gives words of -S alone


def there() -> list[str]:
    """List the recipes of this checkout."""
    return sorted(str(path) for path in HOME.glob("*.yaml"))


def is_recipe(word: str) -> bool:
    """Say whether a word of the command line names a recipe."""
    return word.endswith(SUFFIXES) and "=" not in word


def read(path: Path) -> Recipe:
    """Read a recipe. Raises BadInput for a file that is missing, or no YAML."""
    others = there()
    values = read_yaml(path, f"the recipes are {', '.join(others)}{near(str(path), others)}")
    if isinstance(by_layer := values.get("by_layer"), dict):
        values["by_layer"] = {str(layer): knobs for layer, knobs in by_layer.items()}  # as DVC writes it
    return Recipe(path, values, lines_of(path.read_text(encoding="utf-8")))


def leaves(values: Mapping[Any, Any], above: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Yield the key of each value in ``values``, and the value. A mapping that is replaced as a whole counts as one."""
    for name, value in values.items():
        key = (*above, str(name))
        if isinstance(value, Mapping) and value and key not in REPLACED:
            yield from leaves(value, key)
        else:
            yield key, value


def over(values: Mapping[str, Any], changes: Mapping[str, Any], above: Key = ()) -> dict[str, Any]:
    """Put ``changes`` over ``values`` of params.yaml, key by key where both are mappings; return the result.

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
    """Copy ``values`` without the one at ``key``, and without mappings that are then empty."""
    section, *inner_key = key
    others = {name: value for name, value in values.items() if str(name) != section}
    left = _without(values[section], tuple(inner_key)) if inner_key else {}
    return {**others, section: left} if left else others
