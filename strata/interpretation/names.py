"""The name of a latent: the first thing that a person reads of it.

It is the name that a person gave it, if there is one (`labels.py`); else an explanation in words that does better than
chance; else the token rule, put in words (`phrases.py`); else there is none. This module chooses among explanations.
"""

from collections.abc import Sequence

from strata.interpretation.explanations import Explanation
from strata.interpretation.luck import luck

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
    answered = explanation.items - explanation.unparsed
    if value is None or answered <= 0:
        return False
    return value >= max(0.5, chance or 0) + ABOVE and value >= 0.5 + luck(answered)
