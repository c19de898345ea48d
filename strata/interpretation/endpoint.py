"""Get replies from an endpoint with OpenAI's interface. It may be down, busy, slow, or no such endpoint at all.

The key goes to the address in `OPENAI_BASE_URL` and nowhere else. No redirect is followed. If the endpoint quotes the
key, the key is removed from every message and from every reply that is kept.
"""

import asyncio
import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urlsplit

from strata.interpretation.writers import Chat, Replies, Writer, messages
from strata.run.door import BadInput

if TYPE_CHECKING:
    from httpx2 import AsyncClient

BACKOFF = 1.0  # seconds to wait before the endpoint is asked again; doubled each time
LONGEST_WAIT = 300.0  # seconds that an endpoint may at most ask us to wait
LONGEST_REPLY = 2**20  # bytes that an endpoint may send
QUOTED = 300  # characters of a reply that a message shows
SECRET = 6  # a key with at least this many characters is removed from replies, too; "none" and "EMPTY" are words
BUSY = {408, 409, 425, 429}  # HTTP statuses after which asking again is worthwhile, besides 5xx


@dataclass(frozen=True)
class Patience:
    """How many seconds to wait for a whole reply, how often to ask again, and how many requests to send at a time.

    ``budget``: how many tokens all requests and replies of a run may have; None for no limit.
    """

    timeout: float
    retries: int
    parallel: int
    budget: int | None


@dataclass(frozen=True)
class Endpoint:
    """The address to ask, and the key to send."""

    url: str
    key: str | None

    def without_key(self, text: str) -> str:
        """Replace the key in ``text`` by ***, also where it is quoted as JSON or in an address."""
        if self.key:
            for spelling in {self.key, quote(self.key, safe=""), json.dumps(self.key)[1:-1]}:
                text = text.replace(spelling, "***")
        return text


def find_endpoint() -> Endpoint:
    """Read the endpoint from the environment: `OPENAI_BASE_URL`, and `OPENAI_API_KEY` if the endpoint wants a key.

    Raises BadInput if they cannot be used. The message holds neither the key nor a password.
    """
    base, key = os.environ.get("OPENAI_BASE_URL", "").strip(), os.environ.get("OPENAI_API_KEY", "").strip()
    try:
        address = urlsplit(base)
        usable = address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
    except ValueError:  # brackets, or a port that is no number
        usable, address = False, urlsplit("")

    right = "set it to the endpoint's address, such as http://127.0.0.1:8000/v1"
    if "@" in address.netloc:
        raise BadInput(f"OPENAI_BASE_URL holds a user name or password; {right}, and put the key in OPENAI_API_KEY")
    if not usable or not _plain(base):
        raise BadInput(f"OPENAI_BASE_URL is {base!r}; {right}")
    if address.query or address.fragment:
        raise BadInput(f"OPENAI_BASE_URL goes on after a '?' or '#', and requests add /chat/completions to it; {right}")
    if not _plain(key):
        raise BadInput("OPENAI_API_KEY holds a blank, a line break or a letter that is not ASCII, which no key has")
    return Endpoint(f"{base.rstrip('/')}/chat/completions", key or None)


def _plain(text: str) -> bool:
    """Say whether ``text`` may stand in the head of a request: visible ASCII without blanks."""
    return text.isascii() and text.isprintable() and " " not in text


def endpoint_writer(model: str, patience: Patience, kept: Replies) -> Writer:
    """Return a writer that asks ``model`` at the endpoint which the environment names.

    The writer raises BadInput if the endpoint refuses a request, does not answer, or never sends a chat completion.
    ``kept``: replies from before, which are not asked for again.
    """
    endpoint, purse = find_endpoint(), Purse(patience.budget)

    async def ask(client: "AsyncClient", prompt: Chat, limit: int) -> str | None:
        """Return the reply to one prompt, kept or new; None if there is no chat completion."""
        request = {
            "model": model,
            "messages": messages(prompt),
            "temperature": 0,
            "max_tokens": limit,
        }
        if (known := kept.get(request)) is not None:
            return known[0]

        content = _content(await _post(client, endpoint, request, patience, purse), endpoint)
        if content is not None:  # an answer that cannot be read is not kept: the next run asks again
            kept.keep(request, [content])
        return content

    async def ask_all(prompts: Sequence[Chat], limit: int) -> list[str | None]:
        """Ask all prompts, `patience.parallel` at a time."""
        import httpx2  # takes a third of a second, which a run without an endpoint saves

        turns = asyncio.Semaphore(patience.parallel)

        async def in_turn(client: "AsyncClient", prompt: Chat) -> str | None:
            async with turns:
                return await ask(client, prompt, limit)

        # We count the time ourselves, since httpx's timeout begins anew with each byte. A redirect would take the key
        # to another address.
        async with httpx2.AsyncClient(timeout=None, follow_redirects=False) as client:
            asked = [asyncio.create_task(in_turn(client, prompt)) for prompt in prompts]
            try:
                return await asyncio.gather(*asked)
            finally:  # after a refusal, the requests that still wait are given up
                for task in asked:
                    task.cancel()
                await asyncio.gather(*asked, return_exceptions=True)
                if purse.budget is not None and asked:
                    sys.stderr.write(f"{purse.spent:,} of {purse.budget:,} tokens of explain.budget are used\n")

    def write(prompts: Sequence[Chat], limit: int) -> list[str]:
        try:
            contents = asyncio.run(ask_all(prompts, limit))
        except BadInput as refusal:
            raise BadInput(
                f"{refusal}; the replies so far are kept, so that running again goes on from there"
            ) from None

        if contents and all(content is None for content in contents):
            raise BadInput(
                f"{endpoint.url} answered {len(contents)} times, and never with a chat completion that says something; "
                "is OPENAI_BASE_URL the address of such an endpoint, and does it know the model "
                f"{model!r}? Nothing of it is kept"
            )
        return [content or "" for content in contents]

    return write


# --- tokens ---------------------------------------------------------------------------------------------------------


class Purse:
    """Count the tokens of requests and replies, and see to it that a run never uses more than its budget.

    ``spent``: tokens used so far, by the endpoint's own count where it gives one.
    """

    def __init__(self, budget: int | None) -> None:
        self.budget, self.spent, self.aside = budget, 0, 0

    async def take(self, body: dict[str, Any]) -> int:
        """Set aside the most that a request may use, and return it. Waits for requests under way where it must.

        Raises BadInput if there is not so much left.
        """
        most = _tokens(*_said(body), bytes_each=1)  # no tokenizer makes more than one token of a byte
        while self.budget is not None and self.spent + self.aside + most > self.budget:
            if not self.aside:
                raise BadInput(
                    f"explain.budget is {self.budget:,} tokens: {self.spent:,} are used, and the next request may use "
                    f"{most:,}; raise it, or lower explain.latents"
                )
            await asyncio.sleep(0.01)  # those under way mostly use less than was set aside for them
        self.aside += most
        return most

    def settle(self, most: int, used: int) -> None:
        """Count ``used`` tokens in the place of the ``most`` that were set aside."""
        self.aside -= most
        self.spent += used


def about(turns: Sequence[str], limit: int) -> int:
    """Estimate the tokens of the ``turns`` of a chat, with a reply of ``limit``: an English token has about 4 bytes."""
    return _tokens(turns, limit, bytes_each=3)


def _tokens(turns: Sequence[str], limit: int, bytes_each: int) -> int:
    """Count a token for so many bytes, 16 for what a chat template puts around a turn, and the longest reply."""
    return sum(-(-len(turn.encode(errors="replace")) // bytes_each) + 16 for turn in turns) + limit


def _said(body: dict[str, Any]) -> tuple[list[str], int]:
    """Return the turns of a request, and the limit of its reply."""
    return [message["content"] for message in body["messages"]], body["max_tokens"]


def _used(reply: bytes) -> int | None:
    """Return the number of tokens that a chat completion says it used; None if it does not say."""
    with suppress(ValueError, LookupError, TypeError, RecursionError):
        used = json.loads(reply)["usage"]["total_tokens"]
        return used if isinstance(used, int) and used >= 0 else None
    return None


# --- one request ----------------------------------------------------------------------------------------------------


async def _post(
    client: "AsyncClient", endpoint: Endpoint, body: dict[str, Any], patience: Patience, purse: Purse
) -> bytes:
    """Send a request and return the body of its reply. If the endpoint is busy, down or slow, ask again after a pause.

    Raises BadInput if it refuses, redirects, does not answer in the end, or would cost more than there is. No message
    shows the key.
    """
    from httpx2 import HTTPError

    why = ""
    for attempt in range(patience.retries + 1):
        asked_to_wait, used = 0.0, about(*_said(body))  # also of a request that ends halfway: it may be worked on
        most = await purse.take(body)
        try:
            async with asyncio.timeout(patience.timeout):
                reply = await _reply(client, endpoint, body)
        except TimeoutError:
            why = f"no whole reply within {patience.timeout:g} s"
        except (HTTPError, OSError) as error:
            why = endpoint.without_key(str(error) or type(error).__name__)
        else:
            if 200 <= reply.status < 300:
                counted = _used(reply.body)
                used = used if counted is None else counted
                return reply.body
            used = 0  # refused
            asked_to_wait = _retry_after(reply.headers)
            why = f"HTTP {reply.status}: {_shortened(endpoint.without_key(reply.body.decode(errors='replace')))}"
            if 300 <= reply.status < 400:
                raise BadInput(_redirected(endpoint, reply))
            if reply.status not in BUSY and reply.status < 500:
                raise BadInput(f"{endpoint.url} refuses the request ({why})")
        finally:
            purse.settle(most, used)

        if asked_to_wait > LONGEST_WAIT:
            raise BadInput(f"{endpoint.url} asks to be left alone for {asked_to_wait:.0f} s ({why})")
        if attempt < patience.retries:
            await asyncio.sleep(max(BACKOFF * 2**attempt, asked_to_wait))
    raise BadInput(f"{endpoint.url} does not answer ({why}), asked {patience.retries + 1} times")


class _Reply(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


async def _reply(client: "AsyncClient", endpoint: Endpoint, body: dict[str, Any]) -> _Reply:
    """Send a request and return the reply. If its body is longer than LONGEST_REPLY, return the beginning of it."""
    headers = {"Accept-Encoding": "identity"}  # a compressed body could grow without bound
    if endpoint.key:
        headers["Authorization"] = f"Bearer {endpoint.key}"

    async with client.stream("POST", endpoint.url, json=body, headers=headers) as response:
        content = b""
        async for part in response.aiter_raw():
            content += part
            if len(content) > LONGEST_REPLY:
                break
        return _Reply(response.status_code, response.headers, content)


def _redirected(endpoint: Endpoint, reply: _Reply) -> str:
    """Write the message for a reply that redirects."""
    target = endpoint.without_key(reply.headers.get("Location", "") or "nowhere")
    return (
        f"{endpoint.url} redirects to {_shortened(target)} (HTTP {reply.status}), which is not followed, since the key "
        "would go along; set OPENAI_BASE_URL to the address that answers itself"
    )


def _retry_after(headers: Mapping[str, str]) -> float:
    """Return how many seconds the header Retry-After, a number or a date, asks to wait; 0 if it cannot be read."""
    asked = (headers.get("Retry-After") or "").strip()
    if re.fullmatch(r"\d{1,9}", asked):
        return float(asked)
    try:
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def _shortened(text: str) -> str:
    """Return the beginning of ``text`` on one line, without control characters, which a terminal would obey."""
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
    return line if len(line) <= QUOTED else f"{line[:QUOTED]} …"


def _content(reply: bytes, endpoint: Endpoint) -> str | None:
    """Return the text of a chat completion, without the key. If there is none, print that, and return None."""
    content = None
    if len(reply) <= LONGEST_REPLY:
        with suppress(ValueError, LookupError, TypeError, RecursionError):  # RecursionError: nested brackets
            content = json.loads(reply)["choices"][0]["message"]["content"]
    if isinstance(content, str) and content.strip() and _encodable(content):
        return endpoint.without_key(content) if len(endpoint.key or "") >= SECRET else content
    sys.stderr.write("the endpoint sent something that is no chat completion; it is counted as unparsed\n")
    return None


def _encodable(text: str) -> bool:
    """Say whether ``text`` can be written to a file: no half of a surrogate pair stands alone."""
    return not any("\ud800" <= sign <= "\udfff" for sign in text)
