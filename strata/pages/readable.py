"""Numbers, tokens and facts about a latent in the form that people read, on a page and in a terminal."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from markupsafe import Markup

Row = dict[str, Any]

SCORES = {  # score of an explanation -> its name for people
    "f1": "detection F1",
    "balanced_accuracy": "balanced accuracy",
    "pearson": "Pearson r",
    "spearman": "Spearman ρ",
    "embedding": "embedding AUC",
    "fuzzing": "right marks told",
    "intruder": "intruder found",
}
UNNAMED = "no name yet: no explanation does better than chance"
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
BLANKS = {"▁": " ", "\n": "↵", "\r": "␍", "\t": "⇥"}


def number(value: float | int | None) -> str:
    """Write a number with three significant digits, an integer with all: 0.00412, −63.8, 160,000, 8.63 × 10⁻⁵."""
    if value is None:
        return "–"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}".replace("-", "−")
    digits, _, exponent = f"{value or 0:.3g}".partition("e")
    power = f" × 10{str(int(exponent)).translate(RAISED)}" if exponent else ""
    return digits.replace("-", "−") + power


def percent(share: float | None) -> str:
    """Write a share as a percentage: 0.0312 -> 3.12 %."""
    return "–" if share is None else f"{number(100 * share)} %"


def visible(token: str) -> str:
    """Write a token by itself, with its white space made visible: newline -> ``\\n``, a space -> ``␣``."""
    for blank, name in (("\n", "\\n"), ("\t", "\\t"), ("\r", "\\r"), (" ", "␣"), ("▁", "␣")):
        token = token.replace(blank, name)
    return _printable(token)


def inline(token: str) -> str:
    """Write a token within a text on one line: spaces stay spaces, a newline becomes an arrow."""
    return _printable("".join(BLANKS.get(character, character) for character in token))


def _printable(text: str) -> str:
    """Write characters that cannot be printed as hexadecimal numbers: a terminal would obey them."""
    return text if text.isprintable() else "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def marked(token: str) -> tuple[str, str]:
    """Write a token that is marked within a text; return the space before it, which is not marked, and the marked part.

    A token of nothing but spaces is written as ``␣``.
    """
    text = inline(token)
    word = text.lstrip(" ")
    return (text[: len(text) - len(word)], word) if word else ("", "␣" * len(text))


def excerpt(pieces: list[str], peak: int, before: int = 8, after: int = 7) -> tuple[str, str, str]:
    """Write the text before the token at ``peak``, that token, and the text after it, all on one line.

    ``pieces``: the text of each token. ``before`` and ``after``: how many tokens to show on each side.
    """
    left = "".join(map(inline, pieces[max(0, peak - before) : peak])).lstrip(" ")
    right = "".join(map(inline, pieces[peak + 1 : peak + 1 + after])).rstrip(" ")
    space, word = marked(pieces[peak])
    return left + space * bool(left), word, right


def best_first(explanations: Sequence[Row]) -> list[Row]:
    """Sort a latent's explanations by how far their balanced accuracy is above chance; unscored ones come last."""

    def above(row: Row) -> float:
        value, chance = row["balanced_accuracy"], row["balanced_accuracy_chance"]
        return -1.0 if value is None else value - (0.5 if chance is None else chance)

    return sorted(explanations, key=above, reverse=True)


def explained(explanations: Iterable[Row]) -> dict[int, list[Row]]:
    """Group explanations by latent, the best one first; their ``text`` may be None."""
    by_latent: dict[int, list[Row]] = {}
    for row in explanations:
        by_latent.setdefault(row["latent"], []).append(row)
    return {latent: best_first(rows) for latent, rows in by_latent.items()}


def by_label(enrichment: Sequence[Row]) -> list[tuple[str, dict[str, Row]]]:
    """Group enrichment tests by label: (label, level -> its test), the label with the smallest q first.

    The level is "document" or "token". Labels are sorted by their test on documents first, because documents do not
    repeat one another as tokens do.
    """
    tests: dict[str, dict[str, Row]] = {}
    for row in enrichment:
        tests.setdefault(row["label"], {})[row["level"]] = row

    def certainty(item: tuple[str, dict[str, Row]]) -> tuple[float, float, str]:
        label, by_level = item
        document, token = (by_level[level]["q"] if level in by_level else 1.0 for level in ("document", "token"))
        return document, token, label

    return sorted(tests.items(), key=certainty)


def shade(value: float, strongest: float, shades: int) -> int:
    """Return a shade from 1 to ``shades``: how much of its ``strongest`` activation a latent reaches by ``value``."""
    return min(shades, max(1, -int(-shades * value // strongest)))


def inert(value: Any) -> Markup:
    """Write JSON for a script element of a page: without `<`, so that it cannot end the element or open a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
