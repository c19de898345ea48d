"""Open the templates of this folder."""

from pathlib import Path

from jinja2 import Environment

from strata.pages import templates
from strata.pages.readable import percent, visible

FOLDER = Path(__file__).parent


def environment() -> Environment:
    """Return the Jinja environment of the report and the latents' pages, with the filters that they use."""
    return templates.environment(FOLDER, percent=percent, token=visible)
