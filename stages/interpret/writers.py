"""Where replies and embeddings come from: a transformers model, MiniLM; `endpoint.py` has a third.

A writer takes prompts to replies. What was written is kept by the hash of what was asked, so that a run that was cut
off goes on, and a run done twice is the same.
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

from stages import sentences
from stages.files import read_json, write_json
from stages.lm import LanguageModel
from stages.machine import CPU

Writer = Callable[[Sequence[str], int], list[str]]  # prompts and a limit in tokens -> replies
Embed = Callable[[Sequence[str]], NDArray[np.floating]]  # texts -> unit vectors


@dataclass(frozen=True)
class Replies:
    """Replies kept in a folder, a file a request, named by the request's hash."""

    folder: Path

    def path(self, request: dict[str, Any]) -> Path:
        text = json.dumps(request, sort_keys=True, ensure_ascii=False)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()}.json"

    def get(self, request: dict[str, Any]) -> list[str] | None:
        path = self.path(request)
        return read_json(path)["replies"] if path.exists() else None

    def keep(self, request: dict[str, Any], replies: list[str]) -> None:
        write_json(self.path(request), {"request": request, "replies": replies})


def transformers_writer(lm: LanguageModel, fingerprint: str, batch_size: int, kept: Replies) -> Writer:
    """A model of transformers, greedy. Batches are kept whole: what a prompt is padded to can tip a bfloat16."""

    def write(prompts: Sequence[str], limit: int) -> list[str]:
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
        replies = [""] * len(prompts)
        for first in range(0, len(order), batch_size):
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


@torch.inference_mode()
def _generate(lm: LanguageModel, prompts: list[str], limit: int) -> list[str]:
    tokenizer = lm.tokenizer
    templated = bool(getattr(tokenizer, "chat_template", None))
    if templated:
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
        prompts = [str(tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True)) for c in chats]
    rows = [tokenizer(prompt, add_special_tokens=not templated)["input_ids"] for prompt in prompts]
    length = max(map(len, rows))
    pad = tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else lm.bos
    ids = torch.tensor([[pad] * (length - len(row)) + list(row) for row in rows], device=lm.device)
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device=lm.device)
    generate: Callable[..., Any] = lm.model.generate  # pyright: ignore[reportAssignmentType]  # transformers' stub
    # Named one by one, since a model's own generation_config may sample.
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
    """A sentence-transformers model: `package:NAME`, a folder, or a name in the hub's cache; no network is used."""
    model = sentences.load(source, CPU)

    def embed(texts: Sequence[str]) -> NDArray[np.floating]:
        return np.asarray(model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False))

    return embed
