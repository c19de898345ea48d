"""The templates of this folder, where every value is text until it is said to be markup."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from strata.pages.readable import number, percent, visible

FOLDER = Path(__file__).parent


def environment() -> Environment:
    """What the report and the latents' pages are rendered by."""
    found = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"number": number, "percent": percent, "token": visible}
    return found
