"""params.yaml with other values, and with the comments and the layout that it had."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.representer import RoundTripRepresenter

from apps.recipes.words import alike
from strata.run.params import parse_yaml

WIDEST = 4096  # signs of a line, so that none is broken


class _Writer(RoundTripRepresenter):
    """Writes null as null, not as nothing."""


_Writer.add_representer(type(None), lambda writer, _: writer.represent_scalar("tag:yaml.org,2002:null", "null"))


def changed(text: str, values: Mapping[str, Any], path: Path) -> str | None:
    """The YAML ``text`` of ``path`` with ``values`` in it, and all else as it was.

    None where the text would not say exactly these values.
    """
    file = _file()
    document = file.load(text)
    _change(document, values)
    stream = io.StringIO()
    file.dump(document, stream)
    rewritten = stream.getvalue()
    return rewritten if alike(parse_yaml(rewritten, path)) == alike(values) else None


def _file() -> YAML:
    """A reader and writer that gives params.yaml back to the letter."""
    file = YAML()
    file.width = WIDEST
    file.preserve_quotes = True
    file.indent(mapping=2, sequence=4, offset=2)
    file.Representer = _Writer
    return file


def _change(document: CommentedMap, values: Mapping[Any, Any]) -> None:
    for name in [name for name in document if name not in values]:
        del document[name]
    for name, value in values.items():
        old = document.get(name)
        if isinstance(value, Mapping) and isinstance(old, CommentedMap) and old:
            _change(old, value)
        elif name not in document or alike(old) != alike(value):
            document[name] = _laid_out(value)


def _laid_out(value: Any) -> Any:
    """A list or mapping that is new, on one line; a list of mappings with a line for each."""
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
