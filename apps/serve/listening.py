"""The connections of the server. None can wait for ever, and one that sends nothing gives way to a new one."""

import asyncio
import ipaddress
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADERS = 10.0  # seconds in which a request's headers must arrive, and in which a client must go on reading an answer
CONNECTIONS = 512  # open at once; a new one beyond that closes the one that has been sending its request for longest
REFUSED = 2048  # connections or unfinished answers, beyond which a new request gets a 503
LONGEST_HEADERS = 2**16  # bytes


class Punctual(H11Protocol):
    """A connection of uvicorn's with deadlines.

    uvicorn itself waits for ever for the end of a request's headers, and for a client that does not read its answer.
    Anyone can open such connections, because they need no token. A body has its own deadline (`apps/serve/guard.py`).
    """

    deadline: asyncio.TimerHandle | None = None
    since: float = 0.0  # when it began to wait for a request, in seconds of the event loop's clock

    @property
    def idle(self) -> bool:
        """Whether there is nothing to answer: the headers of a request have yet to come."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def unfinished(self) -> bool:
        """Whether the client has yet to send a whole request."""
        return self.idle or self.cycle.more_body

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_request()

        others = [peer for peer in self.connections if isinstance(peer, Punctual) and peer is not self]
        unfinished = [peer for peer in others if peer.unfinished]
        if len(others) >= CONNECTIONS and unfinished:
            oldest = min(unfinished, key=lambda peer: peer.since)
            self.connections.discard(oldest)  # now: its own connection_lost comes only after this burst of new ones
            oldest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._set_deadline(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        waited = self.idle
        super().data_received(data)
        if waited and not self.idle:
            self._set_deadline(None)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.idle:  # otherwise the next request is already there
            self._wait_for_request()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._set_deadline(HEADERS)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._set_deadline(HEADERS if self.idle else None)

    def send_400_response(self, msg: str) -> None:
        """Answer 400. Where an answer has begun, only close: uvicorn would fail to send a second one."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()

    def _wait_for_request(self) -> None:
        """Give the client HEADERS seconds for the headers of its next request."""
        self.since = self.loop.time()
        self._set_deadline(HEADERS)

    def _set_deadline(self, seconds: float | None) -> None:
        """Close the connection after ``seconds``, whatever it still has to send. None takes the deadline away."""
        if self.deadline is not None:
            self.deadline.cancel()
        self.deadline = None if seconds is None else self.loop.call_later(seconds, self.transport.abort)


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach a server on ``host``."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.rstrip(".").lower() == "localhost"


def config(app: Any, host: str, port: int) -> uvicorn.Config:
    """Configure uvicorn to serve ``app`` over HTTP/1.1 alone, within the limits above."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=Punctual,
        ws="none",
        lifespan="off",
        log_level="warning",
        limit_concurrency=REFUSED,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=5,  # seconds; a text that is being written may take minutes
        h11_max_incomplete_event_size=LONGEST_HEADERS,
    )
