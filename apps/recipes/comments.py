"""Put other values into params.yaml and keep its comments and its layout."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.representer import RoundTripRepresenter

from apps.recipes.words import alike
from strata.run.params import parse_yaml

WIDEST = 4096  # characters of a line: so many that the writer breaks none


class _Writer(RoundTripRepresenter):
    """Writes null as null, not as nothing."""


_Writer.add_representer(type(None), lambda writer, _: writer.represent_scalar("tag:yaml.org,2002:null", "null"))


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
    """Make the reader and writer that gives params.yaml back to the letter."""
    yaml = YAML()
    yaml.width = WIDEST
    yaml.preserve_quotes = True
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.Representer = _Writer
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
            document[name] = _laid_out(value)


def _laid_out(value: Any) -> Any:
    """Lay out a new list or mapping on one line; a list of mappings with a line for each."""
    if isinstance(value, Mapping):
        laid_out = CommentedMap((name, _laid_out(inner)) for name, inner in value.items())
        laid_out.fa.set_flow_style()
        return laid_out
    if isinstance(value, list):
        laid_out = CommentedSeq(map(_laid_out, value))
        if not any(isinstance(inner, Mapping) for inner in value):
            laid_out.fa.set_flow_style()
        return laid_out
    return value
