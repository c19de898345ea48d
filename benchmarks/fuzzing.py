"""What the server does with requests that are broken in many ways: none may get a 5xx but 503, or bring it down.

`python -m benchmarks.fuzzing data/sae/9 data/lm` starts the server in another process, sends it 10,000 requests made of
random parts over plain sockets, holds 1,100 half requests open meanwhile, and prints one JSON object: statuses, the
slowest answer of /health, and memory after each tenth.
"""

import argparse
import json
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import psutil

from benchmarks.serving import started
from strata.run.door import run

PORT = 8766
METHODS = ["GET", "POST", "POST", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "get", "", "PRI", "X" * 300]
PATHS = [
    "/explain", "/explain", "/encode", "/encode", "/generate", "/search", "/", "/live", "/docs",
    "/health", "/metrics", "/openapi.json", "/latents/1",
    "/latents/-1", "/latents/9999999999999999999999", "/latents/nan", "/pages/", "/pages/../../../etc/passwd",
    "/pages/%2e%2e/%2e%2e/etc/passwd", "//", "/%00", "/%ff", "/explain/", "/" + "a" * 5000, "*", "",
    "http://other/health",
]  # fmt: skip
HEADERS = [
    "Host: localhost", "Host: localhost", "Host: localhost", "Host: other.example", "Host:", "Expect: 100-continue",
    "Content-Type: application/json", "Content-Type: text/plain", "Content-Type: multipart/form-data; boundary=x",
    "Connection: close", "Connection: upgrade", "Upgrade: websocket", "Upgrade: h2c", "Authorization: Bearer x",
    "Authorization: \xff", "Transfer-Encoding: chunked", "Transfer-Encoding: gzip, chunked", "Content-Length: -1",
    "Content-Length: 99999999999", "Content-Length: x", "Range: bytes=0-", "X: " + "y" * 9000, "no colon", "\x00: 1",
    " x: 1",
    "Accept-Encoding: gzip", "Content-Encoding: gzip", "Cookie: a=b", "If-None-Match: *", "Origin: http://other.example",
]  # fmt: skip
BODIES = [
    "", "{", "[]", "null", '{"text": "the cat"}', '{"text": "the cat", "top_n": 3, "html": true}', '{"text": ""}',
    '{"text": "the cat", "tokens": 3, "steer": {"1": 2.0}}', '{"text": "cat", "steer": {"x": {}}}', '{"query": "cat"}',
    '{"text": 7}', '{"text": "\\ud800"}', '{"text": "cat", "top_n": 1e99}', '{"vectors": [[1.0, 2.0]]}',
    '{"vectors": [[NaN]]}', '{"vectors": [[1e999]]}', '{"vectors": []}', "[" * 9999, '{"a":' * 5000, "\xff\xfe", "\x00",
    '{"text": "' + "x" * 30_000 + '"}', "zz\r\n", "5\r\nhello\r\n0\r\n\r\n", '{"text": "a", "text": "b"}', "1" * 9999,
]  # fmt: skip


def request(random: np.random.Generator) -> bytes:
    """One request of random parts: its head is sound in three of four, else it may be cut short or changed too."""

    def one(parts: list[str]) -> str:
        return parts[int(random.integers(len(parts)))]

    body, wild = one(BODIES).encode("latin-1"), random.random() < 0.25
    method = one(METHODS if wild else ["GET", "POST", "POST", "POST", "DELETE", "HEAD"])
    version = one(["HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/9", ""]) if wild else "HTTP/1.1"
    headers = ["Host: localhost", f"Content-Length: {len(body)}", "Content-Type: application/json"]
    if wild:
        headers = [*headers[random.integers(3) :], *(one(HEADERS) for _ in range(random.integers(0, 4)))]

    raw = "\r\n".join([f"{method} {one(PATHS)} {version}", *headers, "", ""]).encode("latin-1") + body
    if wild and random.random() < 0.2:
        raw = raw[: random.integers(0, len(raw) + 1)]
    if wild and random.random() < 0.2 and raw:
        changed = bytearray(raw)
        for place in random.integers(0, len(raw), 3):
            changed[place] = random.integers(256)
        raw = bytes(changed)
    return raw


def sent(raw: bytes, port: int, patience: float = 5.0) -> str:
    """The status of the answer; closed where there is none when, after ``patience`` seconds, we say that no more comes;
    silent where the connection stays open even then."""
    with socket.create_connection(("127.0.0.1", port), timeout=patience) as client:
        try:
            client.sendall(raw)
            try:
                answer = client.recv(64)
            except TimeoutError:
                client.shutdown(socket.SHUT_WR)
                client.settimeout(60)
                answer = client.recv(64)
        except TimeoutError:
            return "silent"
        except OSError:
            return "closed"
    words = answer.split(maxsplit=2)
    return words[1].decode("latin-1") if len(words) > 1 and answer.startswith(b"HTTP/") else "closed"


def bad(statuses: Counter[str]) -> list[str]:
    """The statuses that no request may get."""
    return [status for status in statuses if status == "silent" or (status.startswith("5") and status != "503")]


def health(port: int) -> float:
    """Seconds that /health takes; it must answer."""
    first = time.perf_counter()
    urlopen(f"http://127.0.0.1:{port}/health", timeout=60).close()
    return time.perf_counter() - first


def main(*words: str) -> None:
    """Print one JSON object; fail where a status is one that may not be."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzzing", description=main.__doc__)
    parser.add_argument("sae", type=Path)
    parser.add_argument("lm", type=Path)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=16)
    given = parser.parse_args(words)
    random = np.random.default_rng(0)
    statuses, memory, waits = Counter[str](), [], []
    server = started(PORT, str(given.sae), str(given.lm))
    with server as process, ExitStack() as held, ThreadPoolExecutor(given.clients) as pool:
        for tenth in range(10):
            if tenth == 5:  # from here on beside 1,100 that never finish
                for _ in range(1100):
                    half = held.enter_context(socket.create_connection(("127.0.0.1", PORT)))
                    half.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-")
            some = [request(random) for _ in range(given.requests // 10)]
            statuses.update(pool.map(lambda raw: sent(raw, PORT), some))
            waits.append(health(PORT))
            memory.append(psutil.Process(process.pid).memory_info().rss)
        assert process.poll() is None, "the server is down"
    facts = {"statuses": dict(statuses.most_common()), "health_seconds": round(max(waits), 2), "resident_bytes": memory}
    print(json.dumps(facts, indent=1))
    assert not bad(statuses), bad(statuses)


if __name__ == "__main__":
    run(main, options=True)
