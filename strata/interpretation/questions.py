"""What a language model is asked about a latent, and how its replies are read."""

import json
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from strata.interpretation.explanations import Case, Example
from strata.interpretation.scoring import bare
from strata.interpretation.writers import Chat

WORDS = 8  # an explanation has at most this many
LONGEST = 120  # characters of an explanation
NO_ANSWERS = (  # how a reply begins that refuses, or finds nothing, or is a page of HTML
    r"(i.?m|i am|we.?re) (very |so )?(sorry|unable|not (sure|able|certain))",
    r"sorry\b|i (can ?not|can.?t|don.?t|do not)\b|as an? (ai|language model)",
    r"(there is |they have )?(nothing|no (clear |obvious )?(common|pattern|theme|answer|idea))\b",
    r"(none|unknown|n/?a|not applicable|unclear|undefined|null|unable to .*)$",
    r"(es )?tut mir leid|lo siento|(je suis )?désolé|mi dispiace|desculpe|извините|抱歉|对不起|申し訳|すみません|죄송",
    r"<!doctype\b|<html[^>]*>\s*(<|$)",
)
STRONGEST = 10  # stands for the largest activation in a prompt
MARKED = 0.3  # a token is marked from this share of the largest activation on
HINTS = 8  # tokens that are listed below the texts
MOST = 0.5  # of the replies: an answer that more latents than this get says nothing of any of them
# Worked examples, as turns of a chat before the question. They are of several kinds, so that no kind is suggested, and
# so special that a reply which repeats one of them is an echo.
SOLVED = (
    (
        "Active:\n1. She played the<< violin>> while he tuned two old<< flutes>>\n"
        "2. a quartet with<< cello>> and<< clarinet>>, and later a<< harp>>\n"
        "Silent:\n1. The audience was late, and the hall half empty\n"
        'Strongest on: " violin", " cello"',
        "musical instruments",
    ),
    (
        "Active:\n1. It rained all day;<< nevertheless>> they went out\n2. <<Nevertheless>>, the plan was kept\n"
        "Silent:\n1. It rained all day, and they stayed at home\n"
        'Strongest on: " nevertheless", "Nevertheless"',
        'the word "nevertheless"',
    ),
    (
        "Active:\n1. It cost $<<40>> in spring and $<<1,200>> by autumn\n2. a fine of $<<75>> for each\n"
        "Silent:\n1. In 1975 there were 40 of them\n"
        'Strongest on: "40", "75"',
        "numbers after a dollar sign",
    ),
)
SOLVED_DOCUMENTS = (
    (
        "Active:\n1. The violin was made in Cremona, the bow in Paris. (10)\n2. How to tune a flute at home. (8)\n"
        "Silent:\n1. The hall was half empty.",
        "musical instruments",
    ),
    (
        "Active:\n1. Why does my cheese not melt? (10)\n2. Is it safe to freeze cheese twice? (9)\n"
        "Silent:\n1. Cheese is made of milk.",
        "questions about cheese",
    ),
)
ANSWERED = (
    ("Unit: musical instruments\nText: She played the violin while he tuned two old", str(STRONGEST)),
    ("Unit: musical instruments\nText: The audience was late, and the hall half", "0"),
)
CONTENTS = (
    ("She played the violin while he tuned two old flutes, and later a harp", "musical instruments"),
    ("It rained all day; nevertheless they went out", 'the word "nevertheless"'),
    ("It cost $40 in spring and $1,200 by autumn", "numbers after a dollar sign"),
    ("She spoke slowly, quietly and often, but never to him", "words that end in -ly"),
)
MARKED_CONTENTS = (
    ("She played the<< violin>> while he tuned two old<< flutes>>, and later a<< harp>>", "musical instruments"),
    ("It rained all day;<< nevertheless>> they went out", 'the word "nevertheless"'),
    ("It cost $<<40>> in spring and $<<1,200>> by autumn", "numbers after a dollar sign"),
    ("She spoke<< slowly>>,<< quietly>> and<< often>>, but never to him", "adverbs"),
)
QUESTION = (
    "A hidden unit of a language model is active on some tokens of a text. They are marked <<like this>>. "
    f"Say in 1 to {WORDS} words what the marked tokens have in common. Reply with these words alone."
)
QUESTION_DOCUMENTS = (
    "A hidden unit of an embedding model is active on some texts and silent on others. After each active one "
    f"stands how much, from 0 to {STRONGEST}. Say in 1 to {WORDS} words what the active texts have in common. "
    "Reply with these words alone."
)


def explanation_prompt(case: Case) -> Chat:
    """Write the question what a latent stands for, after worked examples.

    The case is its active texts, with the active tokens marked, its silent texts, and which tokens are strongest. A
    whole document has no tokens to mark: only the strength stands behind it.
    """
    most = max((max(example.values) for example in case.active), default=0.0)
    show = _with_strength if case.documents else with_marks
    active = [f"{i}. {show(example, most)}" for i, example in enumerate(case.active, 1)]
    silent = [f"{i}. {_on_one_line(example.text)}" for i, example in enumerate(case.silent, 1)]
    lines = ["Active:", *active, *(["Silent:", *silent] if silent else [])]
    if not case.documents and (strongest := _strongest(case)):
        lines.append(f"Strongest on: {', '.join(json.dumps(piece, ensure_ascii=False) for piece in strongest)}")

    first, *others = SOLVED_DOCUMENTS if case.documents else SOLVED
    question = QUESTION_DOCUMENTS if case.documents else QUESTION
    turns = [(f"{question}\n\n{first[0]}", first[1]), *others, ("\n".join(lines), "")]
    return tuple(turn for asked, answer in turns for turn in (f"{asked}\nIn common:", answer))[:-1]


def answer_prompt(explanation: str, example: Example) -> Chat:
    """Write the question how strongly a latent is active in one window, after two worked examples."""
    question = (
        f"How strongly is a hidden unit of a language model active in a text, from 0 (silent) to {STRONGEST}? "
        "Reply with one number alone."
    )
    (first, answer), *others = ANSWERED
    asked = (f"Unit: {explanation}\nText: {_on_one_line(example.text)}", "")
    turns = [(f"{question}\n\n{first}", answer), *others, asked]
    return tuple(turn for text, number in turns for turn in (f"{text}\nNumber:", number))[:-1]


def content_prompt(example: Example) -> Chat:
    """Write the question what is in one window, after worked examples. How likely an explanation is as its answer says
    whether the window holds what it describes."""
    texts = [*(text for text, _ in CONTENTS), _on_one_line(example.text)]
    asked = [f"Text: {text}\nIn it:" for text in texts]
    asked[0] = f"Name one thing that is in the text, in 1 to {WORDS} words.\n\n{asked[0]}"
    answers = [answer for _, answer in CONTENTS]
    return tuple(turn for pair in zip(asked, [*answers, ""], strict=True) for turn in pair)[:-1]


def marks_prompt(example: Example) -> Chat:
    """Write the question what is marked in one window, after worked examples, like :func:`content_prompt`."""
    texts = [*(text for text, _ in MARKED_CONTENTS), with_marks(example)]
    asked = [f"Text: {text}\nMarked:" for text in texts]
    asked[0] = f"Say in 1 to {WORDS} words what is marked in the text, <<like this>>.\n\n{asked[0]}"
    answers = [answer for _, answer in MARKED_CONTENTS]
    return tuple(turn for pair in zip(asked, [*answers, ""], strict=True) for turn in pair)[:-1]


def marks_answer_prompt(explanation: str, example: Example) -> Chat:
    """Write the question how well an explanation says what is marked in one window, after two worked examples."""
    question = (
        f"How well does a description say which tokens of a text are marked <<like this>>, from 0 to {STRONGEST}? "
        "Reply with one number alone."
    )
    right, wrong = MARKED_CONTENTS[0][0], "She played<< the>> violin while<< he>> tuned two old flutes"
    asked = [f"Description: musical instruments\nText: {text}" for text in (right, wrong)]
    asked.append(f"Description: {explanation}\nText: {with_marks(example)}")
    asked[0] = f"{question}\n\n{asked[0]}"
    answers = (str(STRONGEST), "0", "")
    return tuple(turn for text, number in zip(asked, answers, strict=True) for turn in (f"{text}\nNumber:", number))[
        :-1
    ]


def alike_prompt(examples: Sequence[Example]) -> Chat:
    """Ask for one more text that is marked for the same reason as ``examples``; with none, for any marked text."""
    if not examples:
        return ("Write a text of a few words in which something is marked <<like this>>.",)
    listed = "\n".join(f"- {with_marks(example)}" for example in examples)
    return (f"In these texts the same kind of thing is marked <<like this>>:\n{listed}\nWrite one more such text.",)


def odd_prompt(examples: Sequence[Example]) -> Chat:
    """Ask which of ``examples`` is marked for another reason than the others."""
    listed = "\n".join(f"{number}. {with_marks(example)}" for number, example in enumerate(examples, 1))
    return (
        f"All but one of these texts are marked <<like this>> for the same reason:\n{listed}\n"
        "Which one is marked for another reason? Reply with its number alone.",
    )


def read_choice(reply: str, choices: int) -> int | None:
    """Return which of the ``choices``, from 0, a reply names by its number from 1; None for all else."""
    match = re.match(r"\D{0,20}(\d+)\b", _without_thinking(reply))
    return int(match[1]) - 1 if match and 1 <= int(match[1]) <= choices else None


def with_marks(example: Example, most: float | None = None) -> str:
    """Write `the river<< rose>> again`: the strong tokens marked. ``most``: what their strength is a share of; None:
    the largest activation of the example itself.
    """
    most = max(example.values) if most is None else most
    marked_text, inside = "", False
    for piece, value in zip(example.pieces, example.values, strict=True):
        marked = value >= MARKED * most and value > 0
        if marked != inside:
            marked_text += "<<" if marked else ">>"
        marked_text += piece
        inside = marked
    return _on_one_line(f"{marked_text}>>" if inside else marked_text)


def _strongest(case: Case) -> list[str]:
    """List the tokens at the peaks of the active texts, each once, the strongest first."""
    peaks = [max(zip(example.values, example.pieces, strict=True), key=lambda one: one[0]) for example in case.active]
    ordered = [piece for value, piece in sorted(peaks, key=lambda one: -one[0]) if value > 0]
    return list(dict.fromkeys(ordered))[:HINTS]


def _with_strength(example: Example, most: float) -> str:
    """Write `The river rose. (9)`: a whole document and how strong the latent is on it."""
    return f"{_on_one_line(example.text)} ({round(STRONGEST * example.values[0] / most)})"


def _on_one_line(text: str) -> str:
    return " ".join(text.split())


def without_echoes(texts: Sequence[str | None], cases: Sequence[Case]) -> list[str | None]:
    """Put None in the place of explanations that only repeat something, and so say nothing of the latent.

    That is a worked example's answer, the question, a text that was shown, or what most latents get. ``texts``: an
    explanation for each case, or None.
    """
    answers = {bare(answer) for _, answer in (*SOLVED, *SOLVED_DOCUMENTS)}
    questions = f"{bare(QUESTION)} {bare(QUESTION_DOCUMENTS)}"
    counts = Counter(bare(text) for text in texts if text is not None)
    known = sum(counts.values())

    def echo(text: str, case: Case) -> bool:
        words = bare(text)
        long = len(words.split()) > 2  # shorter ones may stand in any text by chance
        shown = (bare(example.text) for example in (*case.active, *case.silent))
        common = known > 3 and counts[words] > MOST * known
        return words in answers or common or (long and (words in questions or any(words in seen for seen in shown)))

    return [None if text is None or echo(text, case) else text for text, case in zip(texts, cases, strict=True)]


def read_explanation(reply: str) -> str | None:
    """Return the first line of a reply if it has 1 to 8 words, in any language.

    None if it is longer or empty, if the model refuses or says that there is nothing, if it only hands back the form,
    such as `[your words]`, or if the reply is a page of HTML, as a proxy sends one.
    """
    lines = [line for line in _without_thinking(reply).splitlines() if line.strip()]
    text = re.sub(r"^\W*(explanation|answer|in common)\s*:", "", lines[0] if lines else "", flags=re.I)
    text = _unquoted(_bare(re.sub(r"^\s*1[.)]\s+", "", text)))
    placeholder = re.fullmatch(r"[\[<(][^\[\]<>()]*[\])>]", text)
    short = 1 <= len(text.split()) <= WORDS and len(text) <= LONGEST  # some languages have no spaces between words
    if not short or placeholder or not re.search(r"\w", text) or re.match("|".join(NO_ANSWERS), text, re.I):
        return None
    return text


def _bare(text: str) -> str:
    """Remove the spaces, asterisks and backticks around a text, full stops behind it, and a pair of single quotes."""
    text = text.strip(" \t`*").rstrip(" \t`*.")
    return _bare(text[1:-1]) if len(text) > 2 and text[0] == text[-1] == "'" else text


def _unquoted(text: str) -> str:
    """Remove the quotes around a text. If their number is odd, one belongs to the quotation that the prompt began.

    So `months" and so on` becomes `months`, `"of" before names"` becomes `"of" before names`, and `"months` loses the
    quote in front.
    """
    if text.count('"') % 2:
        text = text[1:] if text.startswith('"') and not text.endswith('"') else text.rpartition('"')[0]
    elif text.count('"') == 2 and text[0] == text[-1] == '"':
        text = text[1:-1]
    return _bare(text)


def read_strength(reply: str) -> float:
    """Return the number from 0 to 10 that a reply begins with. "yes" counts as 10 and "no" as 0; NaN for all else."""
    number = r"\d+(?:\.\d+)?(?![\w.,]*\d)"  # not the 5 of 5,000, of 5e9, or of 5.1.2
    match = re.match(rf"[^\w−-]*(yes\b|no\b|{number})", _without_thinking(reply), flags=re.I)
    if not match:
        return np.nan

    word = match[1].lower()
    strength = {"yes": float(STRONGEST), "no": 0.0}.get(word)
    strength = float(word) if strength is None else strength
    return strength if strength <= STRONGEST else np.nan


def _without_thinking(reply: str) -> str:
    """Remove the thinking that some models write before their reply."""
    return reply.rpartition("</think>")[2].strip()
