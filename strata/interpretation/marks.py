"""Two more scores of explanations, by texts in which tokens are marked, as delphi has them (arXiv 2410.13928).

*Fuzzing*: in half of the texts the tokens on which a latent fires are marked, in the other half as many others. Does
the explanation tell the right marks from the wrong ones? It asks for the token, where detection asks for the text.

*Intruder*: of five marked texts a latent fires in four, on the marked tokens; in the fifth it is silent. Which is it?
No explanation is needed: it says whether anybody could name the latent at all. By luck one of five is right.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from strata.interpretation.endpoint import about
from strata.interpretation.explanations import FUZZING, INTRUDER, Case, Example, Explanation
from strata.interpretation.judges import ANSWER_TOKENS, FindOdd, Judge
from strata.interpretation.questions import MARKED, WORDS, marks_answer_prompt, odd_prompt
from strata.interpretation.scoring import score, strangers

ALIKE, TRIALS = 4, 5  # texts of a trial besides the intruder; trials of a latent, at the most
CHANCE = 1 / (ALIKE + 1)
DETECTION = "balanced_accuracy"


def add_fuzzing(found: Sequence[Explanation], cases: Sequence[Case], judge: Judge, seed: int) -> None:
    """Add the score "fuzzing" to each of the explanations ``found``: the balanced accuracy of telling right marks.

    Chance level: the same texts with the explanation of another latent, in other words. ``cases``: one for each
    explanation. ``judge``: says whether a text's marks are what an explanation describes.
    """
    texts = {i: _half_wrong(cases[i], np.random.default_rng([seed, cases[i].latent])) for i in range(len(cases))}
    scorable = [i for i, e in enumerate(found) if e.text is not None and len(texts[i].examples) > 1]
    others = strangers([found[i].text or "" for i in scorable], np.random.default_rng(seed))

    jobs = [(i, FUZZING, found[i].text or "") for i in scorable]
    jobs += [
        (i, f"{FUZZING}_chance", found[scorable[other]].text or "")
        for i, other in zip(scorable, others, strict=True)
        if other is not None
    ]
    judged = judge([(text, texts[i].examples) for i, _, text in jobs])
    for (i, name, _), said in zip(jobs, judged, strict=True):
        found[i].scores[name] = score(texts[i].right, said)[DETECTION]
        found[i].unparsed += int(np.isnan(said).sum())


def add_intruder(found: Sequence[Explanation], cases: Sequence[Case], find_odd: FindOdd, seed: int) -> None:
    """Add the score "intruder" to each of the explanations ``found``: the share of its trials in which it is found.

    A latent that does not fire in ALIKE scored windows, or is never silent, has none. ``cases``: one for each
    explanation.
    """
    trials_of = [_trials(case, np.random.default_rng([seed, case.latent, 1])) for case in cases]
    answers = iter(find_odd([trial.examples for trials in trials_of for trial in trials]))
    for explanation, trials in zip(found, trials_of, strict=True):
        said = [(trial.odd, next(answers)) for trial in trials]
        right = [odd == answer for odd, answer in said if answer is not None]
        explanation.unparsed += len(said) - len(right)
        if right:
            explanation.scores |= {INTRUDER: sum(right) / len(right), f"{INTRUDER}_chance": CHANCE}


def about_tokens(cases: Sequence[Case], scores: Sequence[str]) -> int:
    """Estimate the tokens that it takes an endpoint to give ``cases`` these ``scores``."""
    words = " words" * WORDS
    prompts = []
    for case in cases:
        if FUZZING in scores:
            marked = _half_wrong(case, np.random.default_rng(0)).examples
            prompts += 2 * [marks_answer_prompt(words, example) for example in marked]
        if INTRUDER in scores:
            prompts += [odd_prompt(trial.examples) for trial in _trials(case, np.random.default_rng(0))]
    return sum(about(prompt, ANSWER_TOKENS) for prompt in prompts)


class Marked(NamedTuple):
    """Texts with marks, and which of them are ``right``, (text,) 1 or 0."""

    examples: list[Example]
    right: NDArray[np.float64]


class Trial(NamedTuple):
    """Texts with marks, and the place of the ``odd`` one."""

    examples: list[Example]
    odd: int


def _half_wrong(case: Case, random: np.random.Generator) -> Marked:
    """Take the texts in which the latent fires, and move the marks of half of them. Whole documents have no marks."""
    firing = [] if case.documents else [example for example in case.scored if max(example.values) > 0]
    wrong = np.arange(len(firing)) % 2 == 1  # strong and weak ones in turn
    examples, right = [], []
    for example, moved in zip(firing, wrong, strict=True):
        count, silent = _marks(example), int(np.sum(np.array(example.values) <= 0))
        if silent >= count:  # else there is no room for wrong marks, nor may the right ones tell themselves by that
            examples.append(_marked_anew(example, count, random) if moved else example)
            right.append(float(not moved))
    return Marked(examples, np.array(right))


def _trials(case: Case, random: np.random.Generator) -> list[Trial]:
    """Draw trials without a text that comes twice. The intruder has as many marks as one of the others."""
    if case.documents:
        return []
    firing = [example for example in case.scored if max(example.values) > 0]
    silent = [example for example in case.scored if max(example.values) <= 0]
    firing, silent = ([texts[i] for i in random.permutation(len(texts))] for texts in (firing, silent))

    trials = []
    for number in range(min(TRIALS, len(firing) // ALIKE, len(silent))):
        alike = firing[number * ALIKE : (number + 1) * ALIKE]
        intruder = silent[number]
        count = min(_marks(alike[random.integers(ALIKE)]), len(intruder.values))
        odd = int(random.integers(ALIKE + 1))
        trials.append(Trial([*alike[:odd], _marked_anew(intruder, count, random), *alike[odd:]], odd))
    return trials


def _marks(example: Example) -> int:
    """Count the tokens that a prompt marks."""
    return int(np.sum(np.array(example.values) >= MARKED * max(example.values)))


def _marked_anew(example: Example, count: int, random: np.random.Generator) -> Example:
    """Mark ``count`` tokens on which the latent is silent, and no others."""
    values = np.zeros(len(example.values))
    values[random.choice(np.flatnonzero(np.array(example.values) <= 0), count, replace=False)] = 1.0
    return Example(example.pieces, values.tolist())
