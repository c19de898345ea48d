"""Say in words what the scores of an explanation show together, where they disagree as well."""

from typing import NamedTuple

from strata.interpretation.luck import luck
from strata.pages.readable import SCORES, Row

CLEAR = 0.15  # above chance; of a score of another kind, which is mentioned where it says something else


class Verdict(NamedTuple):
    """``told``: whether the explanation tells where its latent fires; None: it was not tried. ``words``: a sentence."""

    told: bool | None
    words: str


def verdict(explanation: Row) -> Verdict:
    """Judge an explanation by its balanced accuracy, which a yes or a no to everything does not raise."""
    value, chance = explanation["balanced_accuracy"], explanation["balanced_accuracy_chance"]
    answered = explanation["items"] - explanation["unparsed"]
    if value is None or answered <= 0:
        return Verdict(None, "Not judged: too few contexts that the explanation had not seen.")

    if value < 0.5 + luck(answered):
        words = (
            f"Tells contexts apart no better than chance: on {answered} contexts 99 of 100 guesses get "
            f"{0.5 + luck(answered):.2f} or less."
        )
    elif chance is not None and value <= chance:
        words = "Tells contexts apart no better than another latent's explanation does."
    else:
        return Verdict(True, f"Tells contexts apart better than chance.{_behind(explanation)}")
    return Verdict(False, words + _ahead(explanation))


def _ahead(explanation: Row) -> str:
    """Say which other scores are above chance all the same."""
    better = [
        label
        for name, label in SCORES.items()
        if name not in ("balanced_accuracy", "intruder") and _above(explanation, name, CLEAR)
    ]
    if not better:
        return ""
    why = " F1 forgives an explanation that says yes to nearly every context." if SCORES["f1"] in better else ""
    return f" Above chance all the same: {', '.join(better)}.{why}"


def _behind(explanation: Row) -> str:
    """Say which other scores are not above chance all the same."""
    worse = [
        label
        for name, label in SCORES.items()
        if name != "balanced_accuracy" and explanation[name] is not None and not _above(explanation, name, 0.0)
    ]
    return f" Not above chance: {', '.join(worse)}." if worse else ""


def _above(explanation: Row, name: str, least: float) -> bool:
    """Say whether a score is more than ``least`` above its chance; one that is undefined is not."""
    value, chance = explanation[name], explanation[f"{name}_chance"]
    return value is not None and chance is not None and value - chance > least
