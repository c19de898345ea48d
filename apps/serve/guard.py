"""What stands between the network and the model: who may ask, how much, and how many at a time."""

import asyncio
import hmac
import re
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse

from apps.serve.listening import is_loopback
from strata.run.door import BadInput

# Paths that need no token.
OPEN = {"/", "/live", "/docs", "/style.css", "/common.js", "/openapi.json", "/health", "/metrics", "/favicon.ico"}
HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(?::\d*)?")
BODY = 2**24  # bytes: ROWS vectors of 1024 numbers as text
BODIES = 2**28  # bytes that the bodies of all requests may take in memory together
WAITING = 64  # requests that may wait for the model; any more get a 503
SECONDS = 30.0  # that a body may take to arrive

T = TypeVar("T")


class Gate:
    """Let one request at a time use the model. Others wait; a request beyond WAITING is refused.

    The model has a thread of its own. Each thread that calls torch gets its own team of workers, and several teams on
    the same cores slow each other down: an answer then took half as long again (benchmarks/serving.py).
    """

    def __init__(self) -> None:
        self._inside, self.model = 0, ThreadPoolExecutor(1, "model")

    async def run(self, work: Callable[[], T]) -> T:
        """Run ``work()`` in the model's thread when its turn comes.

        Raises HTTPException: 503 where too many wait, 422 with the sentence of a BadInput.
        """
        if self._inside >= WAITING:
            raise HTTPException(503, "too many requests wait; try again soon", {"Retry-After": "1"})
        self._inside += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self.model, work)
        except BadInput as refusal:
            raise HTTPException(422, str(refusal)) from None
        finally:
            self._inside -= 1


class Doorkeeper:
    """Check a request before anything is done for it: its Host, its token, and the size of its body.

    A body must arrive within SECONDS and have at most BODY bytes, even if it does not say how long it is. All bodies in
    memory together have at most BODIES bytes. ``hosts``: names by which the server may be called, beside those of this
    machine; None: any name.
    """

    def __init__(self, app: Any, token: str | None, hosts: frozenset[str] | None) -> None:
        self.app, self.token, self.hosts = app, token, hosts
        self.held = 0  # bytes of all bodies in memory

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        request, parts = Request(scope), []
        refusal = self._wrong_host(request) or self._wrong_token(request)
        try:
            if refusal is None:
                refusal = await asyncio.wait_for(self._take(receive, parts), SECONDS)
        except TimeoutError:
            refusal = problem(408, f"the body did not come within {SECONDS} s")

        try:
            if refusal is not None:
                await refusal(scope, receive, send)
            else:
                await self.app(scope, _replayed(b"".join(parts), receive), send)
        finally:
            self.held -= sum(map(len, parts))

    def _wrong_host(self, request: Request) -> JSONResponse | None:
        """Refuse a Host that is not this server's.

        A page elsewhere can let its own name point to this machine, and so read answers in a visitor's browser. The
        browser then sends that name as the Host.
        """
        host = request.headers.get("host", "")
        match = HOST.fullmatch(host)
        name = match[1].rstrip(".").lower() if match else ""
        if self.hosts is None or name in self.hosts or is_loopback(name):
            return None
        return problem(421, f"this server is not {host[:100]!r}; to let it go by that name, put it in STRATA_HOSTS")

    def _wrong_token(self, request: Request) -> JSONResponse | None:
        """Refuse a request without the server's token, except for the OPEN paths."""
        if self.token is None or request.scope["path"] in OPEN:
            return None

        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(token.strip().encode("latin-1"), self.token.encode())  # headers come as latin-1
        if scheme.lower() == "bearer" and same:
            return None
        challenge = {"WWW-Authenticate": "Bearer"}
        return problem(401, "this server asks for its token as Authorization: Bearer", challenge)

    async def _take(self, receive: Any, parts: list[bytes]) -> JSONResponse | None:
        """Read a request's body into ``parts``, until it ends or exceeds a limit. Return the refusal, or None."""
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return problem(400, "the client has gone")  # nobody reads this answer
            parts.append(message.get("body", b""))
            size, more = size + len(parts[-1]), message.get("more_body", False)
            self.held += len(parts[-1])

            if size > BODY:
                return problem(413, f"the body is larger than {BODY} bytes")
            if self.held > BODIES:
                return problem(503, "too many bodies wait; try again soon", {"Retry-After": "1"})
        return None


def _replayed(body: bytes, receive: Any) -> Callable[[], Awaitable[Any]]:
    """Return an ASGI ``receive`` that gives the whole ``body`` once, and after that what ``receive`` gives."""
    unread: bytes | None = body

    async def receive_again() -> Any:
        nonlocal unread
        if unread is None:
            return await receive()
        message, unread = {"type": "http.request", "body": unread, "more_body": False}, None
        return message

    return receive_again


def problem(status: int, why: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Answer with a ``status`` and one sentence that says ``why``."""
    return JSONResponse({"detail": why}, status, headers)
