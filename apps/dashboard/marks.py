"""Render tokens as HTML, each marked by its code. What a text holds is escaped."""

from collections.abc import Sequence
from html import escape

from strata.pages.readable import inline, marked, number

STYLE = """<style>
.strata { font-size: .93rem; line-height: 1.6; overflow-wrap: anywhere; padding: .35rem 0;
  border-top: 1px solid rgb(128 128 128 / .25) }
.strata small { display: block; opacity: .75 }
.strata mark { color: inherit; border-radius: 3px; padding: 0 1px }
</style>"""


def marks(pieces: Sequence[str], values: Sequence[float], strongest: float, head: str, link: str | None = None) -> str:
    """Render a block of text under a small ``head``. A token's colour deepens with its share of ``strongest``.

    ``pieces`` and ``values``: the tokens and the code on each. ``link``: where the head leads to.
    """
    parts = []
    for piece, value in zip(pieces, values, strict=True):
        if value > 0:
            space, word = marked(piece)
            depth = 0.12 + 0.88 * min(value / strongest, 1.0)
            style = f"background: rgb(245 158 11 / {depth:.2f})"
            parts.append(f'{space}<mark style="{style}" title="{number(float(value))}">{escape(word)}</mark>')
        else:
            parts.append(escape(inline(piece)))

    title = escape(head) if link is None else f'<a href="{escape(link)}" target="_blank">{escape(head)}</a>'
    return f'{STYLE}<div class="strata"><small>{title}</small>{"".join(parts).strip()}</div>'
