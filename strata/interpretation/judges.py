"""Judge windows of text by explanations of latents: by numbers that a model replies, or by what it finds likely.

A small model cannot say whether a text holds what is described: it says yes to nearly all. But it knows what can be
said of a text. So a local model is not asked; we read how likely the explanation is behind the text (docs/latents.md).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from strata.interpretation.explanations import Example
from strata.interpretation.questions import (
    alike_prompt,
    answer_prompt,
    content_prompt,
    odd_prompt,
    read_choice,
    read_strength,
    with_marks,
)
from strata.interpretation.writers import Chat, Fits, Replies, Writer, tokens_of
from strata.lm.anatomy import last_states
from strata.lm.model import LanguageModel, logits
from strata.run.progress import each

ANSWER_TOKENS = 4  # limit of a reply that judges
EXPLANATION_ROOM = 32  # tokens that are kept free for an explanation

Pairs = Iterable[tuple[Chat, str]]  # questions, each with an answer to it
Read = Callable[[Pairs], dict[tuple[Chat, str], float]]  # -> log p(answer | question), in nats, of each pair
Job = tuple[str, Sequence[Example]]  # an explanation, and the windows to judge by it
Judge = Callable[[Sequence[Job]], list[NDArray[np.float64]]]  # -> (window,): above 0 if it fires, NaN for no answer
FindOdd = Callable[[Sequence[Sequence[Example]]], list[int | None]]  # texts -> which is not like the others; None: ?


def by_numbers(writer: Writer, fits: Fits, ask: Callable[[str, Example], Chat] = answer_prompt) -> Judge:
    """Judge by the numbers, 0 to 10, that ``writer`` replies when it is asked how strong a latent is in a window, or
    what else ``ask`` asks.
    """

    def judge(jobs: Sequence[Job]) -> list[NDArray[np.float64]]:
        def cut(explanation: str, example: Example) -> Example:
            return example.cut(lambda part: fits(ask(explanation, part), ANSWER_TOKENS))

        # All questions go to the writer in one call, and the answers come back in the same order.
        prompts = [ask(text, cut(text, example)) for text, windows in jobs for example in windows]
        strengths = iter([read_strength(reply) for reply in writer(prompts, ANSWER_TOKENS)] if prompts else [])
        return [np.array([next(strengths) for _ in windows], float) for _, windows in jobs]

    return judge


def by_likelihood(read: Read, fits: Fits, ask: Callable[[Example], Chat] = content_prompt) -> Judge:
    """Judge by how likely a model finds the explanation after it has read the window: log p(explanation | window).

    Half of the windows of a latent fire, so it is said to fire in those of which the explanation is likelier than of
    the median window. ``ask``: the question whose answer the explanation is.
    """

    def judge(jobs: Sequence[Job]) -> list[NDArray[np.float64]]:
        questions = [
            [ask(example.cut(lambda part: fits(ask(part), EXPLANATION_ROOM))) for example in windows]
            for _, windows in jobs
        ]
        likely = read((question, text) for (text, _), of in zip(jobs, questions, strict=True) for question in of)
        found = [np.array([likely[q, text] for q in of]) for (text, _), of in zip(jobs, questions, strict=True)]
        return [of - np.median(of) if len(of) else of for of in found]

    return judge


def odd_by_number(writer: Writer) -> FindOdd:
    """Find the text that is not like the others by the number that ``writer`` replies."""

    def find(trials: Sequence[Sequence[Example]]) -> list[int | None]:
        replies = writer([odd_prompt(texts) for texts in trials], ANSWER_TOKENS) if trials else []
        return [read_choice(reply, len(texts)) for reply, texts in zip(replies, trials, strict=True)]

    return find


def odd_by_likelihood(read: Read) -> FindOdd:
    """Find the text that the others make least likely: log p(text | the others) - log p(text), the lowest.

    A small model cannot name the odd one, but it goes on with texts like those that it has read.
    """

    def find(trials: Sequence[Sequence[Example]]) -> list[int | None]:
        nothing = alike_prompt([])
        questions = [
            [alike_prompt([*texts[:place], *texts[place + 1 :]]) for place in range(len(texts))] for texts in trials
        ]
        answers = [[with_marks(example) for example in texts] for texts in trials]
        pairs = [pair for of, by in zip(questions, answers, strict=True) for pair in zip(of, by, strict=True)]
        likely = read([*pairs, *((nothing, answer) for _, answer in pairs)])
        gained = iter([likely[question, answer] - likely[nothing, answer] for question, answer in pairs])
        return [int(np.argmin([next(gained) for _ in texts])) for texts in trials]

    return find


def reading(lm: LanguageModel, fingerprint: str, batch_size: int, kept: Replies) -> Read:
    """Return a reader of likelihoods by ``lm``. Each question is read once for all its answers.

    ``fingerprint``: the hash of the model's weights, under which numbers are ``kept``.
    """

    def read(pairs: Pairs) -> dict[tuple[Chat, str], float]:
        answers_of: dict[Chat, dict[str, None]] = {}
        for question, answer in pairs:
            answers_of.setdefault(question, {})[answer] = None

        likely: dict[tuple[Chat, str], float] = {}
        for batch in each(list(batches_of(answers_of, lm, batch_size)), "ask the model", "batches"):
            most = max(len(answers_of[question]) for question in batch)
            for first in range(0, most, batch_size):
                answers = [list(answers_of[question])[first : first + batch_size] for question in batch]
                request = {"model": fingerprint, "likelihood": answers, "prompts": batch}
                replies = kept.get(request)
                if replies is None:
                    replies = [repr(value) for of in log_likelihoods(lm, batch, answers) for value in of]
                    kept.keep(request, replies)
                asked = [(question, answer) for question, of in zip(batch, answers, strict=True) for answer in of]
                likely |= zip(asked, map(float, replies), strict=True)
        return likely

    return read


def attends_only(lm: LanguageModel) -> bool:
    """Say whether all that ``lm`` remembers of a text are keys and values, which several questions can share.

    A layer with a state of another kind, as Mamba's, cannot be judged with by likelihood.
    """
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer  # takes a second, and is loaded here

    with torch.inference_mode():
        _, cache = _read(lm, [[lm.bos]], None)
    kinds = {type(layer) for layer in getattr(cache, "layers", [None])}
    return kinds <= {DynamicLayer, DynamicSlidingWindowLayer}


def batches_of(questions: Iterable[Chat], lm: LanguageModel, size: int) -> Iterator[list[Chat]]:
    """Cut ``questions`` into batches of at most ``size`` that have equally many tokens."""
    of_length: dict[int, list[Chat]] = {}
    for question in sorted(questions):
        of_length.setdefault(len(tokens_of(lm, question)), []).append(question)
    for _, alike in sorted(of_length.items()):
        yield from (alike[first : first + size] for first in range(0, len(alike), size))


@torch.inference_mode()
def log_likelihoods(
    lm: LanguageModel, questions: Sequence[Chat], answers: Sequence[Sequence[str]]
) -> list[list[float]]:
    """Compute log p(answer | question), in nats, of each of the ``answers`` to each question.

    What all questions begin with is read once, and each question once for all its answers. ``questions`` have equally
    many tokens, so that no padding stands between a question and its answer: a model with a sliding window counts it.
    """
    heads = [tokens_of(lm, question) for question in questions]
    space = "" if getattr(lm.tokenizer, "chat_template", None) else " "
    tails = [[lm.read([space + answer])[0] for answer in of] for of in answers]
    assert len({len(head) for head in heads}) == 1, "questions are of one length"

    # What all begin with; then the rest of each question but its last token.
    shared = min(_alike(heads), len(heads[0]) - 2)
    _, cache = _read(lm, [heads[0][:shared]], None)
    cache.batch_repeat_interleave(len(heads))
    _, cache = _read(lm, [head[shared:-1] for head in heads], cache)

    # The last token, and each answer but its last token: each state predicts the token behind it.
    owner = [number for number, of in enumerate(tails) for _ in of]
    cache.batch_select_indices(torch.tensor(owner, device=lm.device))
    states, _ = _read(lm, [[head[-1], *tail[:-1]] for head, of in zip(heads, tails, strict=True) for tail in of], cache)

    found: list[list[float]] = [[] for _ in questions]
    answered = [tail for of in tails for tail in of]
    for number, tail, state in zip(owner, answered, states, strict=True):
        tokens = torch.tensor(tail, dtype=torch.long, device=lm.device)
        log_p = logits(lm, state[: len(tail)]).float().log_softmax(-1)
        found[number].append(log_p[torch.arange(len(tail)), tokens].sum().item())
    return found


def _alike(rows: list[list[int]]) -> int:
    """Count the tokens that all ``rows`` begin with."""
    return next((place for place, column in enumerate(zip(*rows, strict=False)) if len(set(column)) > 1), len(rows[0]))


def _read(lm: LanguageModel, rows: list[list[int]], cache: Any) -> tuple[torch.Tensor, Any]:
    """Run the model on ``rows`` of tokens, padded on the right, behind what ``cache`` holds.

    Returns the states (row, position, width), and the cache with the rows in it.
    """
    length = max(map(len, rows))
    ids = torch.tensor([row + [lm.bos] * (length - len(row)) for row in rows], device=lm.device)
    output = lm.trunk(input_ids=ids, past_key_values=cache, use_cache=True)
    return last_states(output), output.past_key_values
