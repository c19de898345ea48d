"""The name of a latent: the first thing that a person reads of it.

It is an explanation in words that does better than chance; else the token rule, put in words (`phrases.py`); else there
is none.
"""

from collections.abc import Sequence

from strata.interpretation.explanations import Explanation

ABOVE = 0.15  # balanced accuracy that a name must have above chance, and above 0.5
PREFERRED = ("lm", "endpoint", "label", "rule")  # sources of explanations: those in words come first


def chosen(explanations: Sequence[Explanation]) -> tuple[str | None, str | None]:
    """Choose the name of one latent from its ``explanations``, and return it with the explanation's source.

    Both are None where no explanation does better than chance.
    """
    named = [one for one in explanations if one.name is not None and _above_chance(one)]
    named.sort(key=lambda one: PREFERRED.index(one.source))
    return (named[0].name, named[0].source) if named else (None, None)


def _above_chance(explanation: Explanation) -> bool:
    """Say whether an explanation tells where its latent fires, better than another latent's explanation does."""
    value, chance = (explanation.scores[name] for name in ("balanced_accuracy", "balanced_accuracy_chance"))
    return value is not None and value - max(0.5 if chance is None else chance, 0.5) >= ABOVE
