"""Open the templates of this folder. They escape every value that is not a ``Markup``."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from strata.pages.readable import number, percent, visible

FOLDER = Path(__file__).parent


def environment() -> Environment:
    """Return the Jinja environment of the report and the latents' pages, with the filters that they use."""
    templates = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"number": number, "percent": percent, "token": visible}
    return templates
