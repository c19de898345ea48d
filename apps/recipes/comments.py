"""Put other values into params.yaml and keep its comments and its layout."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from apps.recipes.words import alike
from strata.run.params import parse_yaml

WIDEST = 4096  # characters of a line: so many that the writer breaks none


def changed(text: str, values: Mapping[str, Any], path: Path) -> str | None:
    """Return the YAML ``text`` of ``path`` with ``values`` in it, and all else as it was.

    Returns None if the text would not say exactly these values.
    """
    yaml = _yaml()
    document = yaml.load(text)
    _change(document, values)
    stream = io.StringIO()
    yaml.dump(document, stream)
    rewritten = stream.getvalue()
    return rewritten if alike(parse_yaml(rewritten, path)) == alike(values) else None


def _yaml() -> YAML:
    """Make the reader and writer that gives params.yaml back to the letter, as DVC's own does."""
    yaml = YAML()
    yaml.width = WIDEST
    yaml.preserve_quotes = True
    return yaml


def _change(document: CommentedMap, values: Mapping[Any, Any]) -> None:
    """Give ``document`` these ``values``. A key whose value is the same is not touched, so its comments stay, too."""
    for name in [name for name in document if name not in values]:
        del document[name]

    for name, value in values.items():
        old = document.get(name)
        if isinstance(value, Mapping) and isinstance(old, CommentedMap) and old:
            _change(old, value)
        elif name not in document or alike(old) != alike(value):
            document[name] = value
