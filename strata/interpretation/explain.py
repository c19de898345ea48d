"""Explanations by a language model, of a few latents: it is shown where a latent is active and where it is silent, and
says in a few words what it stands for. The same model then reads those words beside texts that it was not shown, and
says how strongly the latent is active in each; that is scored as token rules are.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from strata.device.machine import CPU
from strata.interpretation.endpoint import Patience, endpoint_writer, find_endpoint
from strata.interpretation.explanations import Case, Example, Explanation
from strata.interpretation.knobs import Explain
from strata.interpretation.scoring import derangement, score
from strata.interpretation.writers import Fits, Replies, Writer, endless, room, transformers_writer
from strata.lm.model import LanguageModel, load
from strata.run.door import BadInput
from strata.run.files import sha256
from strata.run.resume import main_root

WORDS = 8  # of an explanation, at the most
STRONGEST = 10  # what the largest activation is called in a prompt
MARKED = 0.3  # share of the largest activation from which on a token is marked
NAMED = 3  # tokens of an example that are listed with their activation
# Worked examples, without which a model that was never taught to answer goes on with more of the texts.
SOLVED_DOCUMENTS = (
    "Active:",
    "1. The treaty was signed in May and came into force in October. (10)",
    "2. By the end of July the river had dried up. (8)",
    "Silent:",
    "1. He may not have known of it.",
    'In common: "names of months"',
)
SOLVED = (
    "Active:",
    '1. The treaty was signed in<< May>> and came into force in<< October>>. (" May" 10, " October" 9)',
    '2. by the end of<< July>> the river had dried up (" July" 10)',
    "Silent:",
    "1. He may not have known of it.",
    'In common: "names of months"',
)
ANSWERED = (
    f"Unit: names of months\nText: The treaty was signed in May and came into force\nNumber: {STRONGEST}\n\n"
    "Unit: names of months\nText: He may not have known of it before he\nNumber: 0\n\n"
)
EXPLANATION_TOKENS = 24
ANSWER_TOKENS = 4
LONG = 64  # words of a document that are shown where there is no room for all


def check(params: Explain) -> None:
    """Refuse an endpoint that cannot be asked, before the hours of work that come before it is."""
    if (params.model or "").startswith("endpoint:"):
        find_endpoint()


def check_room(window: int, lm: LanguageModel) -> None:
    """Refuse a model without room for the questions and one window of so many tokens."""
    fits, nothing = room(lm), Example([""], [0.0])
    asked = explanation_prompt(Case(0, (), (), ())), answer_prompt("", nothing)
    if not (fits(asked[0], EXPLANATION_TOKENS + window) and fits(asked[1], ANSWER_TOKENS + window + WORDS)):
        raise BadInput(
            f"params.yaml: interpret.explain.model: the model reads at most {lm.positions} tokens, fewer than the "
            f"question and one window of {window} have; set it to null, or to a model that reads more"
        )


def open_writer(params: Explain, lm: LanguageModel | None, fingerprint: str, replies: Path) -> tuple[Writer, str, Fits]:
    """The writer that ``params.model`` names, what to call it, lm or endpoint, and the room that it has for prompts.

    ``lm``: the model of `data/lm/`, with its ``fingerprint``; another one must be a folder or in the hub's cache.
    ``replies``: the folder that keeps what was written.
    """
    kept = Replies(replies)
    kind, colon, name = (params.model or "").partition(":")
    if colon and kind == "endpoint":
        return (
            endpoint_writer(name, Patience(params.timeout, params.retries, params.parallel), kept),
            "endpoint",
            endless,
        )
    if params.model != "lm":
        source = str(params.model)
        folder = next((path for path in (Path(source).expanduser(), main_root() / source) if path.is_dir()), None)
        dtype, device = (lm.model.dtype, lm.device) if lm else (torch.bfloat16, CPU)
        lm = load(folder or source, dtype, device, local_files_only=True)
        weights = sorted(folder.glob("*.safetensors")) if folder else []
        fingerprint = ",".join(map(sha256, weights)) or f"{source}@{getattr(lm.model.config, '_commit_hash', None)}"
    assert lm is not None, "the caller sees to it that there is a model where explain.model is lm"
    return transformers_writer(lm, fingerprint, params.batch_size, kept), "lm", room(lm)


def explain(cases: Sequence[Case], writer: Writer, source: str, seed: int, fits: Fits = endless) -> list[Explanation]:
    """Ask ``writer`` for an explanation of each case, and have it judge the scored windows by it.

    Chance: the same windows, judged by another case's explanation. With one explanation alone there is no other.
    ``fits``: a prompt for which the writer has no room shows less.
    """
    replies = writer([explanation_prompt(fitted(case, fits)) for case in cases], EXPLANATION_TOKENS)
    texts = [read_explanation(reply) for reply in replies]
    found = [Explanation(case.latent, source, text) for case, text in zip(cases, texts, strict=True)]
    for explanation in found:
        explanation.unparsed += explanation.text is None
    known = [i for i, text in enumerate(texts) if text is not None]
    if source == "endpoint" and texts and not known:
        raise BadInput(
            f"none of the endpoint's {len(texts)} explanations could be read as 1 to {WORDS} words (the first began "
            f"{replies[0][:60]!r}); name another model in interpret.explain.model, or delete .replies to ask again"
        )
    other = derangement(len(known), np.random.default_rng(seed))
    own = [(i, texts[i] or "") for i in known]
    permuted = [(i, texts[known[o]] or "") for i, o in zip(known, other, strict=True)] if len(known) > 1 else []
    prompts = [
        answer_prompt(text, cut(text, example, fits)) for i, text in own + permuted for example in cases[i].scored
    ]
    answers = iter([read_strength(reply) for reply in writer(prompts, ANSWER_TOKENS)] if prompts else [])
    for end, pairs in (("", own), ("_chance", permuted)):
        for i, _ in pairs:
            said = np.array([next(answers) for _ in cases[i].scored], float)
            found[i].scores |= {f"{name}{end}": value for name, value in score(cases[i].truth, said).items()}
            if not end:
                found[i].items = len(said)
                found[i].unparsed += int(np.isnan(said).sum())
    return found


# --- what there is room for -------------------------------------------------------------------------------------------


def fitted(case: Case, fits: Fits) -> Case:
    """``case`` with as much shown as there is room for: long documents are cut to LONG words, then examples are left
    out, the weakest active one or the last silent one, and at the end the one that is left is cut."""
    active, silent = list(case.active), list(case.silent)
    while not fits(explanation_prompt(case), EXPLANATION_TOKENS):
        both = [(some, number) for some in (active, silent) for number in range(len(some))]
        longest = max(both, key=lambda place: _words(place[0][place[1]]), default=None)
        if longest is None:
            raise BadInput(
                f"interpret.explain.model has no room for the question and one example of latent {case.latent}"
            )
        some, number = longest
        if _words(some[number]) > LONG or (len(both) == 1 and _words(some[number]) > 1):
            some[number] = _halved(some[number])
        else:
            drop_silent = silent and (len(silent) > len(active) or len(active) < 2)
            (silent if drop_silent else active).pop()
        case = replace(case, active=active, silent=silent)
    return case


def cut(explanation: str, example: Example, fits: Fits) -> Example:
    """``example`` as long as there is room for in the question about it, around its peak."""
    while _words(example) > 1 and not fits(answer_prompt(explanation, example), ANSWER_TOKENS):
        example = _halved(example)
    return example


def _words(example: Example) -> int:
    return len(example.text.split())


def _halved(example: Example) -> Example:
    """The half of it around its peak; of a document, which is one piece, the first half of its words."""
    count, half = len(example.pieces), len(example.pieces) // 2
    if count == 1:
        words = example.text.split()
        return Example([" ".join(words[: max(len(words) // 2, 1)])], example.values)
    first = min(max(int(np.argmax(example.values)) - half // 2, 0), count - half)
    return Example(example.pieces[first : first + half], example.values[first : first + half])


# --- what is asked, and how replies are read ------------------------------------------------------------------------


def explanation_prompt(case: Case) -> str:
    """Texts with the active tokens marked, texts without, and the question; before it one that is answered. A text that
    is one piece, a whole document, has nothing to mark: only how strong the latent is on it."""
    most = max((max(example.values) for example in case.active), default=0.0)
    whole = bool(case.active) and all(len(example.pieces) == 1 for example in case.active)
    shown = _weighed if whole else _marked
    active = [f"{i}. {shown(example, most)}" for i, example in enumerate(case.active, 1)]
    silent = [f"{i}. {_line(example.text)}" for i, example in enumerate(case.silent, 1)]
    asked = (
        "A hidden unit of an embedding model is active on some texts and silent on others. After each active one "
        f"stands how much, from 0 to {STRONGEST}. Say in 1 to {WORDS} words what the active texts have in common. "
        if whole
        else "A hidden unit of a language model is active on some tokens of a text. They are marked <<like this>>, and "
        f"the strongest are listed with their activation from 0 to {STRONGEST}. Say in 1 to {WORDS} words what the "
        "marked tokens have in common. "
    )
    parts = [
        asked + "Reply with these words alone.",
        "",
        *(SOLVED_DOCUMENTS if whole else SOLVED),
        "",
        "Active:",
        *active,
        *(["Silent:", *silent] if silent else []),
        'In common: "',
    ]
    return "\n".join(parts)


def answer_prompt(explanation: str, example: Example) -> str:
    """One window, and the question how strongly the latent is active in it; before it two that are answered."""
    return (
        f"How strongly is a hidden unit of a language model active in a text, from 0 (silent) to {STRONGEST}? "
        f"Reply with one number alone.\n\n{ANSWERED}Unit: {explanation}\nText: {_line(example.text)}\nNumber:"
    )


def _marked(example: Example, most: float) -> str:
    text, inside = "", False
    for piece, value in zip(example.pieces, example.values, strict=True):
        mark = value >= MARKED * most and value > 0
        text += ("<<" if mark else ">>") * (mark != inside) + piece
        inside = mark
    strongest = sorted(range(len(example.values)), key=lambda i: (-example.values[i], i))[:NAMED]
    named = [
        f"{json.dumps(example.pieces[i], ensure_ascii=False)} {round(STRONGEST * example.values[i] / most)}"
        for i in strongest
        if example.values[i] > 0
    ]
    return f"{_line(text + '>>' * inside)} ({', '.join(named)})"


def _weighed(example: Example, most: float) -> str:
    return f"{_line(example.text)} ({round(STRONGEST * example.values[0] / most)})"


def _line(text: str) -> str:
    return " ".join(text.split())


def read_explanation(reply: str) -> str | None:
    """The first line of a reply if it has 1 to 8 words; None if it is longer, empty, or the form handed back."""
    lines = [line for line in _said(reply).splitlines() if line.strip()]
    text = re.sub(r"^\W*(explanation|answer|in common)\s*:", "", lines[0] if lines else "", flags=re.I)
    text = _unquoted(re.sub(r"^\s*1[.)]\s+", "", text).strip(" \t'`*.")).strip(" \t'`*.")
    placeholder = re.fullmatch(r"[\[<(].*[\])>]", text)
    return text if 1 <= len(text.split()) <= WORDS and re.search(r"\w", text) and not placeholder else None


def _unquoted(text: str) -> str:
    """Without quotes around it, or what follows the end of a quotation that the prompt began."""
    if text.count('"') % 2:
        return text[1:] if text.startswith('"') else text.rpartition('"')[0]
    return text[1:-1] if text.count('"') == 2 and text[0] == text[-1] == '"' else text


def read_strength(reply: str) -> float:
    """The number from 0 to 10 that a reply begins with; yes is 10 and no 0. NaN if it is neither."""
    match = re.match(r"[^\w-]*(yes\b|no\b|\d+(?:\.\d+)?(?![\w.]*\d))", _said(reply), flags=re.I)
    if not match:
        return np.nan
    word = match[1].lower()
    number = {"yes": float(STRONGEST), "no": 0.0}.get(word)
    number = float(word) if number is None else number
    return number if number <= STRONGEST else np.nan


def _said(reply: str) -> str:
    """A reply without the thinking aloud that some models put before it."""
    return reply.rpartition("</think>")[2].strip()
