"""Get replies from a transformers model, and embeddings from a sentence model. `endpoint.py` asks an endpoint.

A writer is a function from prompts to replies. Replies are kept by the hash of the request. So a run that was cut off
goes on where it was, and a run that is done twice gives the same.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from strata import sentences
from strata.device.machine import CPU
from strata.interpretation.scoring import Embed
from strata.lm.model import LanguageModel
from strata.run.files import read_json, write_json
from strata.run.progress import each

Chat = tuple[str, ...]  # a prompt: turns of the user and of the assistant in turn; the user has the first and the last
Writer = Callable[[Sequence[Chat], int], list[str]]  # prompts and a limit in tokens -> replies
Fits = Callable[[Chat, int], bool]  # a prompt and a limit in tokens -> whether the writer has room for both
ROLES = ("user", "assistant")


@dataclass(frozen=True)
class Replies:
    """Replies that are kept in a folder: one file for each request, named by its hash."""

    folder: Path

    def path(self, request: dict[str, Any]) -> Path:
        """Return the file for the replies to ``request``, whether or not it exists."""
        text = json.dumps(request, sort_keys=True, ensure_ascii=False)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()}.json"

    def get(self, request: dict[str, Any]) -> list[str] | None:
        """Return the replies that are kept for ``request``; None if there are none."""
        path = self.path(request)
        return read_json(path)["replies"] if path.exists() else None

    def keep(self, request: dict[str, Any], replies: list[str]) -> None:
        """Keep the replies to ``request``."""
        write_json(self.path(request), {"request": request, "replies": replies})


def transformers_writer(lm: LanguageModel, fingerprint: str, batch_size: int, kept: Replies) -> Writer:
    """Return a writer that decodes greedily with ``lm``.

    The replies of a batch are kept together, since the length to which a prompt is padded can change the last bit of a
    bfloat16, and so the reply. ``fingerprint``: the hash of the model's weights, a part of every request.
    """

    def write(prompts: Sequence[Chat], limit: int) -> list[str]:
        # In the order of their length, so that batches need little padding.
        order = sorted(range(len(prompts)), key=lambda i: (sum(map(len, prompts[i])), i))
        replies = [""] * len(prompts)
        for first in each(range(0, len(order), batch_size), "ask the model", "batches"):
            batch = order[first : first + batch_size]
            request = {"model": fingerprint, "limit": limit, "prompts": [prompts[i] for i in batch]}
            answers = kept.get(request)
            if answers is None:
                answers = _generate(lm, request["prompts"], limit)
                kept.keep(request, answers)
            for i, answer in zip(batch, answers, strict=True):
                replies[i] = answer
        return replies

    return write


def room(lm: LanguageModel) -> Fits:
    """Return a test of whether a prompt, and a reply of a number of tokens, fit into the positions of ``lm``."""
    return lambda prompt, limit: lm.positions is None or len(tokens_of(lm, prompt)) + limit <= lm.positions


def endless(prompt: Chat, limit: int) -> bool:
    """Say yes: the test for a writer of which we do not know how much it reads."""
    return True


def messages(prompt: Chat) -> list[dict[str, str]]:
    """Return a prompt as the messages of a chat."""
    return [{"role": ROLES[number % 2], "content": turn} for number, turn in enumerate(prompt)]


def tokens_of(lm: LanguageModel, prompt: Chat) -> list[int]:
    """Return the tokens that the model reads: BOS, once, and the prompt.

    If the tokenizer has a chat template, the prompt becomes a chat. Then BOS comes first only if the template puts it
    there. Else an answer follows its question on the same line, and an empty line stands behind it.
    """
    if not getattr(lm.tokenizer, "chat_template", None):
        ends = ("", *(" " if number % 2 == 0 else "\n\n" for number in range(len(prompt) - 1)))
        return [lm.bos, *lm.read(["".join(end + turn for end, turn in zip(ends, prompt, strict=True))])[0]]

    text = str(lm.tokenizer.apply_chat_template(messages(prompt), tokenize=False, add_generation_prompt=True))
    whole = lm.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return [lm.bos] * (whole[:1] == [lm.bos]) + lm.read([text])[0]  # pyright: ignore[reportIndexIssue]


@torch.inference_mode()
def _generate(lm: LanguageModel, prompts: list[Chat], limit: int) -> list[str]:
    """Decode a reply of at most ``limit`` tokens to each of ``prompts``, greedily, in one batch."""
    tokenizer = lm.tokenizer

    # Padded on the left, so that every reply begins right after its prompt.
    rows = [tokens_of(lm, prompt) for prompt in prompts]
    length = max(map(len, rows))
    pad = tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else lm.bos
    ids = torch.tensor([[pad] * (length - len(row)) + list(row) for row in rows], device=lm.device)
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device=lm.device)

    generate: Callable[..., Any] = lm.model.generate  # pyright: ignore[reportAssignmentType]  # transformers' stub
    # The options are named one by one, since the generation_config of a model may ask for sampling.
    output = generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=limit,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        pad_token_id=pad,
    )
    return [str(text) for text in tokenizer.batch_decode(output[:, length:], skip_special_tokens=True)]


# --- embeddings -----------------------------------------------------------------------------------------------------


def embedder(source: str) -> Embed:
    """Load a sentence-transformers model and return a function from texts to unit vectors, (text, width).

    ``source``: `package:NAME`, a folder, or a name in the hub's cache. No network is used.
    """
    model = sentences.load(source, CPU)

    def embed(texts: Sequence[str]) -> NDArray[np.floating]:
        return np.asarray(model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False))

    return embed
