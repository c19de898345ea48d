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
from strata.interpretation.questions import answer_prompt, content_prompt, read_strength
from strata.interpretation.writers import Chat, Fits, Replies, Writer, room, tokens_of
from strata.lm.anatomy import last_states
from strata.lm.model import LanguageModel, logits

ANSWER_TOKENS = 4  # limit of a reply that judges
EXPLANATION_ROOM = 32  # tokens that are kept free for an explanation

Job = tuple[str, Sequence[Example]]  # an explanation, and the windows to judge by it
Judge = Callable[[Sequence[Job]], list[NDArray[np.float64]]]  # -> (window,): above 0 if it fires, NaN for no answer


def by_numbers(writer: Writer, fits: Fits) -> Judge:
    """Judge by the numbers, 0 to 10, that ``writer`` replies when it is asked how strong a latent is in a window."""

    def judge(jobs: Sequence[Job]) -> list[NDArray[np.float64]]:
        def cut(explanation: str, example: Example) -> Example:
            return example.cut(lambda part: fits(answer_prompt(explanation, part), ANSWER_TOKENS))

        # All questions go to the writer in one call, and the answers come back in the same order.
        prompts = [answer_prompt(text, cut(text, example)) for text, windows in jobs for example in windows]
        strengths = iter([read_strength(reply) for reply in writer(prompts, ANSWER_TOKENS)] if prompts else [])
        return [np.array([next(strengths) for _ in windows], float) for _, windows in jobs]

    return judge


def by_likelihood(lm: LanguageModel, fingerprint: str, batch_size: int, kept: Replies) -> Judge:
    """Judge by how likely ``lm`` finds the explanation after it has read the window: log p(explanation | window).

    Half of the windows of a latent fire, so it is said to fire in those of which the explanation is likelier than of
    the median window. ``fingerprint``: the hash of the model's weights, under which numbers are ``kept``.
    """
    fits = room(lm)

    def judge(jobs: Sequence[Job]) -> list[NDArray[np.float64]]:
        # The windows of a latent stand in several jobs; each text is read once.
        said: dict[Chat, dict[str, float]] = {}
        questions = []
        for explanation, windows in jobs:
            cut = [example.cut(lambda part: fits(content_prompt(part), EXPLANATION_ROOM)) for example in windows]
            questions.append([content_prompt(example) for example in cut])
            for question in questions[-1]:
                said.setdefault(question, {})[explanation] = np.nan

        for batch in batches_of(said, lm, batch_size):
            answers = [list(said[question]) for question in batch]
            request = {"model": fingerprint, "likelihood": answers, "prompts": batch}
            replies = kept.get(request)
            if replies is None:
                replies = [repr(value) for of in log_likelihoods(lm, batch, answers) for value in of]
                kept.keep(request, replies)
            numbers = iter(map(float, replies))
            for question, of in zip(batch, answers, strict=True):
                said[question] = {text: next(numbers) for text in of}

        found = [np.array([said[q][text] for q in of]) for (text, _), of in zip(jobs, questions, strict=True)]
        return [likely - np.median(likely) if len(likely) else likely for likely in found]

    return judge


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
