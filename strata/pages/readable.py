"""Numbers, tokens and what is known of a latent as a person reads them, on a page and in a terminal alike."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from markupsafe import Markup

Row = dict[str, Any]

SCORES = {
    "f1": "detection F1",
    "balanced_accuracy": "balanced accuracy",
    "pearson": "Pearson r",
    "spearman": "Spearman ρ",
    "embedding": "embedding AUC",
}
BLANKS = {"▁": " ", "\n": "↵", "\r": "␍", "\t": "⇥"}


def number(value: float | int | None) -> str:
    """Three significant digits, or all of an integer's: 0.00412, 63.8, 160,000."""
    if value is None:
        return "–"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def percent(share: float | None) -> str:
    """A share as a percentage: 0.0312 -> 3.12 %."""
    return "–" if share is None else f"{number(100 * share)} %"


def visible(token: str) -> str:
    """A token by itself, its white space made visible: newline -> ``\\n``, a leading space -> ``␣``."""
    for blank, name in (("\n", "\\n"), ("\t", "\\t"), ("\r", "\\r"), (" ", "␣"), ("▁", "␣")):
        token = token.replace(blank, name)
    return _printable(token)


def inline(token: str) -> str:
    """A token within a text: spaces stay spaces, a newline is an arrow on the line."""
    return _printable("".join(BLANKS.get(sign, sign) for sign in token))


def _printable(text: str) -> str:
    """What cannot be printed, as hexadecimal: a terminal would obey it."""
    return text if text.isprintable() else "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def marked(token: str) -> tuple[str, str]:
    """The same for a token that is pointed at: the space before it, which is left unmarked, and what is marked. A
    token of spaces alone is shown as ``␣``."""
    text = inline(token)
    word = text.lstrip(" ")
    return (text[: len(text) - len(word)], word) if word else ("", "␣" * len(text))


def excerpt(pieces: list[str], peak: int, before: int = 8, after: int = 7) -> tuple[str, str, str]:
    """What stands before the token at ``peak``, that token, and what stands after, each on one line."""
    left = "".join(map(inline, pieces[max(0, peak - before) : peak])).lstrip(" ")
    space, word = marked(pieces[peak])
    return left + space * bool(left), word, "".join(map(inline, pieces[peak + 1 : peak + 1 + after])).rstrip(" ")


def best_first(explanations: Sequence[Row]) -> list[Row]:
    """A latent's explanations by how far their detection is above chance; those that were not scored come last."""

    def above(row: Row) -> float:
        value, chance = row["balanced_accuracy"], row["balanced_accuracy_chance"]
        return -1.0 if value is None else value - (0.5 if chance is None else chance)

    return sorted(explanations, key=above, reverse=True)


def explained(explanations: Iterable[Row]) -> dict[int, list[Row]]:
    """Latent -> its explanations, the best first; their ``text`` may be None."""
    found: dict[int, list[Row]] = {}
    for row in explanations:
        found.setdefault(row["latent"], []).append(row)
    return {latent: best_first(rows) for latent, rows in found.items()}


def by_label(enrichment: Sequence[Row]) -> list[tuple[str, dict[str, Row]]]:
    """Label -> its test on documents and on tokens, the surest label first: by documents, which do not repeat."""
    found: dict[str, dict[str, Row]] = {}
    for row in enrichment:
        found.setdefault(row["label"], {})[row["level"]] = row

    def sure(item: tuple[str, dict[str, Row]]) -> tuple[float, float, str]:
        document, token = (item[1][level]["q"] if level in item[1] else 1.0 for level in ("document", "token"))
        return document, token, item[0]

    return sorted(found.items(), key=sure)


def shade(value: float, strongest: float, shades: int) -> int:
    """1 … ``shades``: how much of its ``strongest`` activation a latent reaches."""
    return min(shades, max(1, -int(-shades * value // strongest)))


def inert(value: Any) -> Markup:
    """JSON that may stand in a script element: no `<`, so that nothing in it can end the element or open a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)
