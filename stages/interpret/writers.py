"""Where replies and embeddings come from: a transformers model, an endpoint that speaks as OpenAI's does, MiniLM.

A writer takes prompts to replies. What was written is kept by the hash of what was asked, so that a run that was cut
off goes on, and a run done twice is the same.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import numpy as np
import torch
from numpy.typing import NDArray

from stages import sentences
from stages.door import BadInput
from stages.files import read_json, write_json
from stages.lm import LanguageModel
from stages.machine import CPU

BACKOFF = 1.0  # seconds before an endpoint is asked again; doubled each time
LONGEST_REPLY = 2**22  # bytes that an endpoint may send

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


@dataclass(frozen=True)
class Patience:
    """How long to wait for an endpoint (seconds), how often to ask again, how many requests to have under way."""

    timeout: float
    retries: int
    parallel: int


def endpoint_writer(model: str, patience: Patience, kept: Replies) -> Writer:
    """An OpenAI-compatible endpoint: `OPENAI_BASE_URL`, and `OPENAI_API_KEY` where it wants one, of the environment."""
    base, key = os.environ.get("OPENAI_BASE_URL", "").rstrip("/"), os.environ.get("OPENAI_API_KEY")
    if urlsplit(base).scheme not in ("http", "https"):
        raise BadInput(
            f"OPENAI_BASE_URL is {base!r}; set it to the endpoint's address, such as http://127.0.0.1:8000/v1"
        )

    def ask(prompt: str, limit: int) -> str:
        request = {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": limit,
        }
        if (known := kept.get(request)) is not None:
            return known[0]
        content = _content(_post(f"{base}/chat/completions", request, key, patience))
        if content is None:
            return ""  # counted as unparsed; not kept, since it may be the endpoint's bad day
        kept.keep(request, [content])
        return content

    def write(prompts: Sequence[str], limit: int) -> list[str]:
        pool = ThreadPoolExecutor(patience.parallel)
        try:
            return list(pool.map(partial(ask, limit=limit), prompts))
        except BadInput as refusal:
            raise BadInput(
                f"{refusal}; the replies so far are kept, so that running again goes on from there"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)

    return write


def _post(url: str, body: dict[str, Any], key: str | None, patience: Patience) -> bytes:
    """Send a request; again, after a pause, if the endpoint is busy, down or slow."""
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    request = Request(url, json.dumps(body).encode(), headers)
    why = ""
    for attempt in range(patience.retries + 1):
        if attempt:
            time.sleep(BACKOFF * 2 ** (attempt - 1))
        try:
            with urlopen(request, timeout=patience.timeout) as response:  # its scheme was checked
                return response.read(LONGEST_REPLY)
        except HTTPError as error:
            why = f"HTTP {error.code}: {' '.join(error.read(1000).decode(errors='replace').split())}"
            if error.code not in (408, 409, 429) and error.code < 500:
                raise BadInput(f"{url} refuses the request ({why})") from None
        except (URLError, HTTPException, OSError) as error:
            why = str(getattr(error, "reason", error)) or type(error).__name__
    raise BadInput(f"{url} does not answer ({why}), asked {patience.retries + 1} times")


def _content(reply: bytes) -> str | None:
    """The text of a chat completion; None if it is none."""
    try:
        content = json.loads(reply)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        content = None
    if isinstance(content, str):
        return content
    sys.stderr.write("the endpoint sent something that is no chat completion; it is counted as unparsed\n")
    return None


# --- embeddings -----------------------------------------------------------------------------------------------------


def embedder(source: str) -> Embed:
    """A sentence-transformers model: `package:NAME`, a folder, or a name in the hub's cache; no network is used."""
    model = sentences.load(source, CPU)

    def embed(texts: Sequence[str]) -> NDArray[np.floating]:
        return np.asarray(model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False))

    return embed
