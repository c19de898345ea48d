"""Open the Jinja templates of a folder. They escape every value that is not a ``Markup``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from strata.pages.readable import number


def environment(folder: Path, **filters: Callable[..., Any]) -> Environment:
    """Return the environment of the templates in ``folder``, with ``filters`` beside the filter ``number``.

    A name that a template uses and is not given is an error.
    """
    templates = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"number": number, **filters}
    return templates
