"""Open the templates of this folder."""

import base64
import hashlib
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup, escape

from stages.report.glossary import WORDS
from strata.pages import templates
from strata.pages.readable import percent, visible

FOLDER = Path(__file__).parent


def environment() -> Environment:
    """Return the Jinja environment of the report and the latents' pages, with the filters that they use.

    ``words_script``, which a page carries inside itself, shows what words mean; ``words_hash`` lets this script alone
    run, by the page's Content-Security-Policy.
    """
    made = templates.environment(FOLDER, percent=percent, token=visible, term=term)
    script = (FOLDER / "words.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    made.globals |= {"words": WORDS, "words_script": Markup(script), "words_hash": f"sha256-{digest}"}
    return made


def term(shown: str, word: str | None = None) -> Markup:
    """Write a word that says what it means when one points at it, taps it or reaches it with the keyboard.

    ``word``: its entry in the glossary, where that is not ``shown`` itself.
    """
    return Markup(f'<dfn tabindex="0" title="{escape(WORDS[word or shown])}">{escape(shown)}</dfn>')
