"""Ask a language model to explain a few latents in words.

The model sees texts on which a latent is active and texts on which it is silent, and says in a few words what the
latent stands for. The same model then reads these words beside other texts, which it has not seen, and says how
strongly the latent is active in each. Its answers are scored as token rules are.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from strata.device.machine import CPU, fast_dtype
from strata.interpretation.endpoint import Patience, endpoint_writer, find_endpoint
from strata.interpretation.explanations import Case, Example, Explanation
from strata.interpretation.knobs import Explain
from strata.interpretation.scoring import bare, score, strangers
from strata.interpretation.writers import Chat, Fits, Replies, Writer, endless, room, transformers_writer
from strata.lm.model import LanguageModel, load
from strata.run.door import BadInput
from strata.run.files import sha256
from strata.run.resume import main_root
from strata.weights.unpacked import unpacked

WORDS = 8  # an explanation has at most this many
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
QUESTION = (
    "A hidden unit of a language model is active on some tokens of a text. They are marked <<like this>>. "
    f"Say in 1 to {WORDS} words what the marked tokens have in common. Reply with these words alone."
)
QUESTION_DOCUMENTS = (
    "A hidden unit of an embedding model is active on some texts and silent on others. After each active one "
    f"stands how much, from 0 to {STRONGEST}. Say in 1 to {WORDS} words what the active texts have in common. "
    "Reply with these words alone."
)
EXPLANATION_TOKENS = 24  # limit of a reply that explains
ANSWER_TOKENS = 4  # limit of a reply that judges
LONG = 64  # words of a document that are shown when there is no room for all of them


def check(params: Explain) -> None:
    """Refuse an endpoint that cannot be asked, at once: the first question comes only after hours of work."""
    if (params.model or "").startswith("endpoint:"):
        find_endpoint()


def check_room(window: int, lm: LanguageModel) -> None:
    """Refuse a model that has no room for the questions and one window of ``window`` tokens."""
    fits = room(lm)
    explanation_question = explanation_prompt(Case(0, (), (), ()))
    answer_question = answer_prompt("", Example([""], [0.0]))

    explains = fits(explanation_question, EXPLANATION_TOKENS + window)
    if not (explains and fits(answer_question, ANSWER_TOKENS + window + WORDS)):
        raise BadInput(
            f"params.yaml: interpret.explain.model: the model reads at most {lm.positions} tokens, fewer than the "
            f"question and one window of {window} have; set it to null, or to a model that reads more"
        )


def open_writer(params: Explain, lm: LanguageModel | None, fingerprint: str, replies: Path) -> tuple[Writer, str, Fits]:
    """Return the writer that ``params.model`` names, its kind ("lm" or "endpoint"), and a test of what it has room for.

    ``lm``: the model of `data/lm/`, and ``fingerprint``: its hash. Any other model must be `package:NAME`, a folder,
    or be in the hub's cache. ``replies``: the folder in which replies are kept.
    """
    kept = Replies(replies)
    kind, colon, name = (params.model or "").partition(":")
    if colon and kind == "endpoint":
        patience = Patience(params.timeout, params.retries, params.parallel)
        return endpoint_writer(name, patience, kept), "endpoint", endless

    if params.model != "lm":
        source = str(params.model)
        places = (Path(source).expanduser(), main_root() / source)
        folder = unpacked(source) if kind == "package" else next((path for path in places if path.is_dir()), None)
        dtype, device = (lm.model.dtype, lm.device) if lm else (fast_dtype(CPU), CPU)
        lm = load(folder or source, dtype, device, local_files_only=True)

        # Replies are kept by the fingerprint, so it has to differ when the weights differ.
        weights = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]) if folder else []
        fingerprint = ",".join(map(sha256, weights)) or f"{source}@{getattr(lm.model.config, '_commit_hash', None)}"

    assert lm is not None, "the caller sees to it that there is a model where explain.model is lm"
    return transformers_writer(lm, fingerprint, params.batch_size, kept), "lm", room(lm)


def explain(cases: Sequence[Case], writer: Writer, source: str, seed: int, fits: Fits = endless) -> list[Explanation]:
    """Ask ``writer`` to explain each case, then to judge the scored windows of the case by its explanation.

    Chance level: the same windows, judged by the explanation of another case, in other words. Where there is none, the
    chance scores stay None. ``fits``: says whether the writer has room for a prompt; where it has not, the prompt shows
    less. Raises BadInput if no reply of an endpoint can be read as an explanation.
    """
    replies = writer([explanation_prompt(fitted(case, fits)) for case in cases], EXPLANATION_TOKENS)
    read = [read_explanation(reply) for reply in replies]
    texts = without_echoes(read, cases)
    explanations = [Explanation(case.latent, source, text, name=text) for case, text in zip(cases, texts, strict=True)]
    for explanation, said in zip(explanations, read, strict=True):
        explanation.unparsed += explanation.text is None
        explanation.echoed = explanation.text is None and said is not None

    explained = [i for i, text in enumerate(texts) if text is not None]
    if source == "endpoint" and read and not any(read):
        raise BadInput(
            f"none of the endpoint's {len(texts)} explanations could be read as 1 to {WORDS} words (the first began "
            f"{replies[0][:60]!r}); name another model in interpret.explain.model, or delete .replies to ask again"
        )

    # Pairs of a case's number and the text to judge it by: its own explanation, and that of another case.
    own = [(i, texts[i] or "") for i in explained]
    others = strangers([text for _, text in own], np.random.default_rng(seed))
    permuted = [(i, own[other][1]) for i, other in zip(explained, others, strict=True) if other is not None]

    # All questions go to the writer in one call, and the answers come back in the same order.
    prompts = [
        answer_prompt(text, cut(text, example, fits)) for i, text in own + permuted for example in cases[i].scored
    ]
    strengths = iter([read_strength(reply) for reply in writer(prompts, ANSWER_TOKENS)] if prompts else [])
    for suffix, pairs in (("", own), ("_chance", permuted)):
        for i, _ in pairs:
            judged = np.array([next(strengths) for _ in cases[i].scored], float)
            scores = score(cases[i].truth, judged)
            explanations[i].scores |= {f"{name}{suffix}": value for name, value in scores.items()}
            if suffix == "":
                explanations[i].items = len(judged)
                explanations[i].unparsed += int(np.isnan(judged).sum())
    return explanations


# --- what there is room for -------------------------------------------------------------------------------------------


def fitted(case: Case, fits: Fits) -> Case:
    """Shorten a case until the writer has room for the question about it.

    First, texts of more than LONG words are halved, the longest first. Then examples are left out, the weakest
    active one or the last silent one. In the end the one example that is left is halved.
    Raises BadInput if there is not even room for the question and one example.
    """
    active, silent = list(case.active), list(case.silent)
    while not fits(explanation_prompt(case), EXPLANATION_TOKENS):
        places = [(examples, number) for examples in (active, silent) for number in range(len(examples))]
        longest = max(places, key=lambda place: _words(place[0][place[1]]), default=None)
        if longest is None:
            raise BadInput(
                f"interpret.explain.model has no room for the question and one example of latent {case.latent}"
            )

        examples, number = longest
        words = _words(examples[number])
        if words > LONG or (len(places) == 1 and words > 1):
            examples[number] = _halved(examples[number])
        else:
            drop_silent = silent and (len(silent) > len(active) or len(active) < 2)
            (silent if drop_silent else active).pop()
        case = replace(case, active=active, silent=silent)
    return case


def cut(explanation: str, example: Example, fits: Fits) -> Example:
    """Halve an example, around its peak, until the writer has room for the question about it."""
    while _words(example) > 1 and not fits(answer_prompt(explanation, example), ANSWER_TOKENS):
        example = _halved(example)
    return example


def _words(example: Example) -> int:
    """Count the words of an example."""
    return len(example.text.split())


def _halved(example: Example) -> Example:
    """Keep the half of an example that is around its peak; of a document, which is one piece, keep the first half."""
    count, half = len(example.pieces), len(example.pieces) // 2
    if count == 1:
        words = example.text.split()
        return Example([" ".join(words[: max(len(words) // 2, 1)])], example.values)

    first = min(max(int(np.argmax(example.values)) - half // 2, 0), count - half)
    return Example(example.pieces[first : first + half], example.values[first : first + half])


# --- what is asked, and how replies are read ------------------------------------------------------------------------


def explanation_prompt(case: Case) -> Chat:
    """Write the question what a latent stands for, after worked examples.

    The case is its active texts, with the active tokens marked, its silent texts, and which tokens are strongest. A
    whole document has no tokens to mark: only the strength stands behind it.
    """
    most = max((max(example.values) for example in case.active), default=0.0)
    show = _with_strength if case.documents else _with_marks
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


def _with_marks(example: Example, most: float) -> str:
    """Write `the river<< rose>> again`: the strong tokens marked. ``most``: the largest activation of all examples."""
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
    """Return the first line of a reply if it has 1 to 8 words.

    None if it is longer or empty, or if the model only hands back the form, such as `[your words]`.
    """
    lines = [line for line in _without_thinking(reply).splitlines() if line.strip()]
    text = re.sub(r"^\W*(explanation|answer|in common)\s*:", "", lines[0] if lines else "", flags=re.I)
    text = _unquoted(_bare(re.sub(r"^\s*1[.)]\s+", "", text)))
    placeholder = re.fullmatch(r"[\[<(][^\[\]<>()]*[\])>]", text)
    return text if 1 <= len(text.split()) <= WORDS and re.search(r"\w", text) and not placeholder else None


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
