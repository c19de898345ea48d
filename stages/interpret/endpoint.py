"""Replies from an endpoint that speaks as OpenAI's does. It may be down, busy, slow, or no such endpoint at all.

The key goes to the address in `OPENAI_BASE_URL` and nowhere else: no redirect is followed, and should the endpoint
quote the key, it is struck from what is said and what is kept.
"""

import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from email.message import Message
from email.utils import parsedate_to_datetime
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import HTTPHandler, HTTPRedirectHandler, HTTPSHandler, OpenerDirector, Request, build_opener

from stages.door import BadInput
from stages.interpret.writers import Replies, Writer

BACKOFF = 1.0  # seconds before an endpoint is asked again; doubled each time
LONGEST_WAIT = 300.0  # seconds that an endpoint may ask to be left alone
LONGEST_REPLY = 2**20  # bytes that an endpoint may send
QUOTED = 300  # characters of a reply that a message shows
SECRET = 6  # characters from which on a key is struck from replies, too: "none" and "EMPTY" are words
BUSY = {408, 409, 425, 429}  # besides 5xx: worth asking again


@dataclass(frozen=True)
class Patience:
    """How long to wait for a whole reply (seconds), how often to ask again, how many requests to have under way."""

    timeout: float
    retries: int
    parallel: int


@dataclass(frozen=True)
class Endpoint:
    """Where to ask, and with which key."""

    url: str
    key: str | None

    def without_key(self, text: str) -> str:
        """``text`` with the key struck out, also where it is quoted as JSON or in an address."""
        if self.key:
            for spelling in {self.key, quote(self.key, safe=""), json.dumps(self.key)[1:-1]}:
                text = text.replace(spelling, "***")
        return text


def find_endpoint() -> Endpoint:
    """The endpoint of the environment: `OPENAI_BASE_URL`, and `OPENAI_API_KEY` where it wants one.

    Raises BadInput, without the key or a password in it, for what cannot be asked.
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
    """Whether ``text`` can stand in a request's head: visible ASCII, no blanks."""
    return text.isascii() and text.isprintable() and " " not in text


def endpoint_writer(model: str, patience: Patience, kept: Replies) -> Writer:
    """A writer that asks ``model`` at the endpoint of the environment.

    It raises BadInput where the endpoint refuses, stays away, or sends no chat completion whatever it is asked.
    """
    endpoint = find_endpoint()

    def ask(prompt: str, limit: int, stopped: threading.Event) -> str | None:
        request = {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": limit,
        }
        if (known := kept.get(request)) is not None:
            return known[0]
        content = _content(_post(endpoint, request, patience, stopped), endpoint)
        if content is not None:  # else not kept: it may be the endpoint's bad day
            kept.keep(request, [content])
        return content

    def write(prompts: Sequence[str], limit: int) -> list[str]:
        pool, stopped = ThreadPoolExecutor(patience.parallel), threading.Event()
        try:
            asked = [pool.submit(ask, prompt, limit, stopped) for prompt in prompts]
            for answered in wait(asked, return_when=FIRST_EXCEPTION).done:
                answered.result()  # raises what went wrong, also while others wait
            contents = [answered.result() for answered in asked]
        except BadInput as refusal:
            raise BadInput(
                f"{refusal}; the replies so far are kept, so that running again goes on from there"
            ) from None
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)

        if contents and all(content is None for content in contents):
            raise BadInput(
                f"{endpoint.url} answered {len(contents)} times, and never with a chat completion that says something; "
                "is OPENAI_BASE_URL the address of such an endpoint, and does it know the model "
                f"{model!r}? Nothing of it is kept"
            )
        return [content or "" for content in contents]

    return write


# --- one request ----------------------------------------------------------------------------------------------------


def _post(endpoint: Endpoint, body: dict[str, Any], patience: Patience, stopped: threading.Event) -> bytes:
    """Send a request and return the body of its reply; ask again, after a pause, if the endpoint is busy, down or slow.

    Its words are never shown with the key in them. ``stopped``: another request was refused, so give up.
    """
    headers = {"Content-Type": "application/json"}
    if endpoint.key:
        headers["Authorization"] = f"Bearer {endpoint.key}"
    request = Request(endpoint.url, json.dumps(body).encode(), headers)
    attempt, why = 0, ""
    for attempt in range(patience.retries + 1):
        asked_to_wait = 0.0
        try:
            reply = _reply(request, patience.timeout)
        except (URLError, HTTPException, OSError) as error:
            why = endpoint.without_key(str(getattr(error, "reason", error)) or type(error).__name__)
        else:
            if 200 <= reply.status < 300:
                return reply.body
            asked_to_wait = _retry_after(reply.headers)
            why = f"HTTP {reply.status}: {_shortened(endpoint.without_key(reply.body.decode(errors='replace')))}"
            if 300 <= reply.status < 400:
                raise BadInput(_redirected(endpoint, reply))
            if reply.status not in BUSY and reply.status < 500:
                raise BadInput(f"{endpoint.url} refuses the request ({why})")

        if asked_to_wait > LONGEST_WAIT:
            raise BadInput(f"{endpoint.url} asks to be left alone for {asked_to_wait:.0f} s ({why})")
        last = attempt == patience.retries
        if not last and stopped.wait(max(BACKOFF * 2**attempt, asked_to_wait)):
            break
    raise BadInput(f"{endpoint.url} does not answer ({why}), asked {attempt + 1} times")


class _Reply(NamedTuple):
    status: int
    headers: Message
    body: bytes


def _reply(request: Request, timeout: float) -> _Reply:
    """A reply that is whole ``timeout`` seconds from now; of its body at most a byte more than LONGEST_REPLY.

    urllib's own timeout begins anew with each byte.
    """
    with _Deadline(timeout) as deadline:
        opener = build_opener(_Handler(deadline), _NoRedirects)
        try:
            with _opened(opener, request, timeout) as response:
                reply = _Reply(response.status, response.headers, response.read(LONGEST_REPLY + 1))
        except (OSError, HTTPException) as error:
            if deadline.over:
                raise TimeoutError(f"no whole reply within {timeout:g} s") from error
            raise
        if deadline.over:  # one that ends with its connection looks whole
            raise TimeoutError(f"no whole reply within {timeout:g} s")
        return reply


def _opened(opener: OpenerDirector, request: Request, timeout: float) -> Any:
    """The response, whatever its status."""
    try:
        return opener.open(request, timeout=timeout)  # its scheme was checked
    except HTTPError as response:
        return response


class _Deadline:
    """Shuts the watched connections down when ``seconds`` are over, whatever is being read from them."""

    def __init__(self, seconds: float) -> None:
        self.over = False
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True
        self._watched: list[socket.socket] = []

    def __enter__(self) -> "_Deadline":
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._timer.join()
        for watched in self._watched:
            watched.close()

    def watch(self, connection: socket.socket) -> None:
        """Watch a connection by a handle of our own: TLS takes over the one that is given."""
        self._watched.append(connection.dup())
        if self.over:
            self._end()

    def _end(self) -> None:
        self.over = True
        for watched in self._watched:
            with suppress(OSError):  # it has ended by itself
                watched.shutdown(socket.SHUT_RDWR)


class _Connection(HTTPConnection):
    """A connection that its deadline watches."""

    deadline: _Deadline

    def connect(self) -> None:
        super().connect()
        self.deadline.watch(self.sock)


class _SecureConnection(HTTPSConnection, _Connection):
    """The same over TLS: HTTPSConnection connects as what comes after it does, and then shakes hands."""


class _Handler(HTTPHandler, HTTPSHandler):
    """Opens addresses of both kinds, under a deadline."""

    def __init__(self, deadline: _Deadline) -> None:
        super().__init__()
        self._deadline = deadline

    def http_open(self, req: Request) -> HTTPResponse:
        return self.do_open(partial(self._connection, _Connection), req)  # pyright: ignore[reportArgumentType]

    def https_open(self, req: Request) -> HTTPResponse:
        return self.do_open(partial(self._connection, _SecureConnection), req)  # pyright: ignore[reportArgumentType]

    def _connection(self, kind: type[_Connection], *words: Any, **options: Any) -> _Connection:
        connection = kind(*words, **options)
        connection.deadline = self._deadline
        return connection


class _NoRedirects(HTTPRedirectHandler):
    """Leaves a redirect to us as an error: followed, it takes the key along and turns POST into GET."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _redirected(endpoint: Endpoint, reply: _Reply) -> str:
    target = endpoint.without_key(reply.headers.get("Location", "") or "nowhere")
    return (
        f"{endpoint.url} redirects to {_shortened(target)} (HTTP {reply.status}), which is not followed, since the key "
        "would go along; set OPENAI_BASE_URL to the address that answers itself"
    )


def _retry_after(headers: Message) -> float:
    """The seconds that an answer asks to wait, given as such or as a date; 0 if it asks for nothing we understand."""
    asked = (headers.get("Retry-After") or "").strip()
    if re.fullmatch(r"\d{1,9}", asked):
        return float(asked)
    try:
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def _shortened(text: str) -> str:
    """The beginning of ``text``, on one line, without signs that a terminal would obey."""
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
    return line if len(line) <= QUOTED else f"{line[:QUOTED]} …"


def _content(reply: bytes, endpoint: Endpoint) -> str | None:
    """The text of a chat completion, without the key; None, said aloud, if it is none, or holds no text."""
    content = None
    if len(reply) <= LONGEST_REPLY:
        with suppress(ValueError, LookupError, TypeError, RecursionError):  # RecursionError: nested brackets
            content = json.loads(reply)["choices"][0]["message"]["content"]
    if isinstance(content, str) and content.strip() and _encodable(content):
        return endpoint.without_key(content) if len(endpoint.key or "") >= SECRET else content
    sys.stderr.write("the endpoint sent something that is no chat completion; it is counted as unparsed\n")
    return None


def _encodable(text: str) -> bool:
    """Whether no half of a surrogate pair stands alone in ``text``, which no file could hold."""
    return not any("\ud800" <= sign <= "\udfff" for sign in text)
