"""The dashboard: its numbers by hand, its vectors the stored ones, and a person who opens every tab and moves every
slider."""

import json
import logging
import math
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import urlopen

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small
import streamlit as st
import torch
from conftest import WORDS, save_tiny_lm
from scipy.stats import kendalltau
from starlette.applications import Starlette
from starlette.testclient import TestClient
from streamlit.testing.v1 import AppTest

from apps.dashboard import artifacts, measures
from apps.dashboard.artifacts import DOCUMENT, TOKEN, Project
from apps.dashboard.latents import ANY, LEAST, matching
from apps.dashboard.marks import marks
from apps.dashboard.server import routes
from benchmarks import browser
from src import dashboard as script
from strata.corpus.read import SPLITS, documents
from strata.rows.shards import open_activations, open_contexts
from strata.run.door import BadInput
from strata.run.files import sha256, write_json

ROOT = Path(__file__).resolve().parents[1]
APP = ROOT / "apps" / "dashboard" / "app.py"
CHOICES = 12  # of buttons and lists that a tab is opened with, at the most
TABS = ["Latents", "Documents", "Dimensions", "Clustering", "Similarity", "Training", "Try a text"]

# --- numbers by hand ------------------------------------------------------------------------------------------------


def test_lengths_and_words() -> None:
    texts = ["The cat, the cat.", "a dog", "!"]
    found = measures.lengths(texts)
    assert found["characters"].tolist() == [17, 5, 1]
    assert found["words"].tolist() == [4, 2, 0] and found["distinct words"].tolist() == [2, 2, 0]
    assert found["lexical density"].tolist() == [0.5, 1.0, 0.0]
    words = measures.vocabulary(texts)
    assert words["word"].tolist() == ["cat", "the", "a", "dog"] and words["count"].tolist() == [2, 2, 1, 1]
    assert words["share of documents"].tolist() == pytest.approx([1 / 3] * 4)


def test_a_trend_is_the_mean_about_each_place() -> None:
    found = measures.trend(np.array([3.0, 1.0, 2.0]), np.array([30.0, 10.0, 50.0]), 3)
    assert found["x"].tolist() == [1, 2, 3] and found["y"].tolist() == [30, 30, 40]


def test_principal_components_of_a_line() -> None:
    x = np.outer(np.arange(6.0), [3.0, 4.0])  # on a line of slope 4/3, steps of length 5
    scores, table = measures.principal(x, 2)
    assert table["variance"].tolist() == pytest.approx([1, 0], abs=1e-12)
    assert np.diff(np.abs(scores[3:, 0])) == pytest.approx([5, 5]) and np.allclose(scores[:, 1], 0)
    assert table["cumulative"].iloc[-1] == pytest.approx(1)


def test_density_is_one_over_the_distance() -> None:
    x = np.array([[0.0], [1.0], [3.0]])
    assert measures.density(x, 1).tolist() == pytest.approx([1, 1, 0.5])
    assert measures.density(x, 2).tolist() == pytest.approx([1 / 2, 1 / 1.5, 1 / 2.5])


def test_kmeans_and_how_it_agrees_with_labels() -> None:
    x = np.array([[0.0], [0.1], [0.2], [9.0], [9.1]])
    clusters, away = measures.kmeans(x, 2, 0, standardise=False)
    assert clusters.tolist() == [0, 0, 0, 1, 1] and away.tolist() == pytest.approx([0.1, 0, 0.1, 0.05, 0.05])
    agreed = measures.agreement(clusters, ["a", "a", "a", "b", None], 0)
    assert agreed is not None and agreed[0] == pytest.approx(1) and abs(agreed[1]) < agreed[0]
    assert measures.agreement(clusters, ["a"] * 5, 0) is None
    assert measures.silhouette(x, clusters, 0) == pytest.approx(0.98, abs=0.01)
    assert measures.silhouette(x, np.zeros(5, int), 0) is None


def test_pairs_and_their_decay() -> None:
    x = np.array([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])
    found = measures.pairs(x, 0)
    assert found["cosine"].tolist() == pytest.approx([0, -1, 0])
    assert found["distance"].tolist() == pytest.approx([math.sqrt(5), 4, math.sqrt(13)])
    fallen = measures.decay(found, 2)
    assert fallen["pairs"].tolist() == [1, 2] and fallen["cosine"].tolist() == pytest.approx([0, -0.5])
    shares = measures.histogram({"a": np.array([0.0, 1.0]), "b": np.array([0.0])}, 2)
    assert shares["share"].tolist() == [0.5, 0.5, 1, 0] and shares["low"].tolist() == [0, 0.5, 0, 0.5]


def test_the_nearest_pairs_by_brute_force() -> None:
    random = np.random.default_rng(0)
    x, owner = random.standard_normal((700, 4)), random.integers(0, 50, 700)
    directions = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosine = directions @ directions.T
    i, j = np.triu_indices(700, 1)
    for apart in (False, True):
        kept = (owner[i] != owner[j]) | (not apart)
        best = np.argsort(-cosine[i[kept], j[kept]])[:9]
        found = measures.closest(x, owner, 9, apart)
        assert list(zip(found["i"], found["j"], strict=True)) == list(zip(i[kept][best], j[kept][best], strict=True))


def test_reranking_changes_the_order_alone() -> None:
    codes = np.array([[0.0, 2.0, 0.0, 5.0, 0.0], [1.0, 0.0, 0.0, 4.0, 3.0]])
    order, ranked = measures.reranked(codes)
    assert order.tolist() == [3, 1, 4, 0] and ranked.tolist() == [[5, 2, 0, 0], [4, 0, 3, 1]]
    alike = measures.alike(codes).set_index(["one", "other"])
    assert alike.loc[(0, 1), "kendall"] == pytest.approx(kendalltau(codes[0][[0, 1, 3, 4]], codes[1][[0, 1, 3, 4]])[0])
    assert alike.loc[(0, 1), "cosine"] == pytest.approx(20 / math.sqrt(29 * 26))
    assert alike.loc[(1, 1), "kendall"] == pytest.approx(1) and alike.loc[(1, 1), "cosine"] == pytest.approx(1)


@pytest.mark.parametrize("method", ["PCA", "t-SNE", "UMAP"])
def test_layouts_repeat_and_keep_two_groups_apart(method: str) -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((40, 5)).astype(np.float32)
    x[20:] += 30
    one, other = (measures.reduced(x, method, 1, perplexity=5, neighbours=5) for _ in range(2))
    assert np.array_equal(one, other) and one.shape == (40, 2)
    centres = one[:20].mean(0), one[20:].mean(0)
    spread = max(one[:20].std(), one[20:].std())
    assert np.linalg.norm(centres[0] - centres[1]) > 2 * spread


def test_what_is_searched_for() -> None:
    frame = pd.DataFrame(
        {
            "latent": [0, 1, 2], "explanation": ["of war", "of Peace", ""], "tokens": ["a", "b", "war"],
            "state": ["kept", "kept", "dead"], "density": [0.5, 0.001, 0.0], "score": [0.9, 0.5, np.nan],
            "chance": [0.5, 0.5, np.nan], "name": ["conflicts", None, None],
        }
    )  # fmt: skip
    everything = ["kept", "dead"]

    def found(*given: Any) -> list[int]:
        return matching(frame, *given)["latent"].tolist()

    assert found("", everything, (LEAST, 0.0), ANY) == [0, 1, 2]
    assert found("WAR", everything, (LEAST, 0.0), ANY) == [0, 2]
    assert found("conflict", everything, (LEAST, 0.0), ANY) == [0]
    assert found("of p", ["kept"], (LEAST, 0.0), ANY) == [1]
    assert found("", everything, (-2.0, 0.0), ANY) == [0] and found("", everything, (LEAST, -2.0), ANY) == [1, 2]
    assert found("", everything, (LEAST, 0.0), 0.1) == [0]


def test_marks_escape_what_a_text_holds() -> None:
    html = marks([" <b>", "x"], [1.0, 0.0], 2.0, "<i>")
    assert "<b>" not in html and "&lt;b&gt;</mark>x" in html and "<small>&lt;i&gt;</small>" in html and "/ 0.56" in html


# --- real artifacts ---------------------------------------------------------------------------------------------------


def made(folder: Path, kind: str) -> Path:
    """A project that the stages ran in: of given vectors, or of a tiny language model."""
    before, tracking = Path.cwd(), os.environ.get("STRATA_TRACKING")
    threads = torch.get_num_threads()
    os.chdir(folder)
    os.environ["STRATA_TRACKING"] = "off"
    try:
        small.make(folder)
        lines = [json.loads(line) for line in Path("lines.jsonl").read_text().splitlines()]
        random = np.random.default_rng(1)
        often = 1 / np.arange(1, len(WORDS) + 1)
        often /= often.sum()
        with Path("lines.jsonl").open("w") as file:  # of many lengths, of words common and rare
            for line in lines:
                said = " ".join(random.choice(WORDS, random.integers(4, 40), p=often))
                print(json.dumps({**line, "text": f"{line['text']} {said}" if kind == "vectors" else said}), file=file)
        if kind == "vectors":
            small.of_vectors()
        else:
            save_tiny_lm(folder / "lm", "gpt2")
            small.change(fetch__lm__source="lm", extract__context=16, train__ce_tokens=64, interpret__window=8)
            small.change(extract__tokens=1500)
            small.change(explain__model=None, explain__embedder=None)
            small.change(merge__run=False, invert__run=False, steer_eval__run=False)
        small.run()
    finally:
        os.chdir(before)
        torch.set_num_threads(threads)
        os.environ.pop("STRATA_TRACKING")
        if tracking is not None:
            os.environ["STRATA_TRACKING"] = tracking
    return folder


@pytest.fixture(scope="module", params=["language", "vectors"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp(request.param), request.param)


def project(folder: Path) -> Project:
    return Project(folder / "data", folder / "reports")


def test_a_sample_is_what_is_stored(folder: Path) -> None:
    of, stored = project(folder), open_activations(folder / "data/activations/0")
    contexts = open_contexts(folder / "data/activations/tokens")
    owner = np.concatenate([contexts.rows(split)[1] for split in SPLITS])
    unit = of.units(0)[0]
    assert of.units(0) == ([TOKEN, DOCUMENT] if "language" in folder.name else [DOCUMENT]) and of.layers() == [0]
    one, other = (artifacts.sample(of, 0, unit, 40, False, 3) for _ in range(2))
    assert np.array_equal(one.x, other.x) and one.rows.equals(other.rows) and len(one.x) == 40 and one.outliers == 0
    rows = one.rows["row"].to_numpy()
    assert np.array_equal(one.x, stored.read(0, stored.rows).float().numpy()[rows])
    assert np.array_equal(one.rows["document"], owner[rows])
    assert not np.array_equal(rows, artifacts.sample(of, 0, unit, 40, False, 4).rows["row"])
    texts = {document["document"]: "".join(document["text"].split()) for document in documents(folder / "data/corpus")}
    for line in one.rows.to_dict("records"):  # the tiny tokenizer's words come without their spaces
        text = "".join(str(line["text"]).translate(dict.fromkeys(map(ord, "⟦⟧…"))).split())
        assert text and text in texts[line["document"]]
    sae = of.sae(0)
    dense = sae.encode(torch.from_numpy(one.x))
    assert np.array_equal(artifacts.one_code(sae, one.x, 3), dense.pattern.dense(dense.values)[:, 3].numpy())
    few = artifacts.sample(of, 0, unit, 10**6, True, 0)
    assert len(few.x) + few.outliers == stored.rows and few.rows["norm"].max() <= 3 * stored.median_norm


def test_a_document_is_the_mean_of_its_rows(folder: Path) -> None:
    of, stored = project(folder), open_activations(folder / "data/activations/0")
    contexts = open_contexts(folder / "data/activations/tokens")
    owner = np.concatenate([contexts.rows(split)[1] for split in SPLITS])
    x = stored.read(0, stored.rows).double().numpy()
    found = artifacts.sample(of, 0, DOCUMENT, 25, False, 0)
    assert len(found.x) == 25
    norms = artifacts.norms(of, 0, list(range(200)))
    assert sorted(norms) == sorted(set(owner.tolist()))
    for vector, document in zip(found.x, found.rows["document"], strict=True):
        assert np.allclose(vector, x[owner == document].mean(0), atol=1e-5)
        assert norms[document] == pytest.approx(np.linalg.norm(vector), rel=1e-5)


def page(tab: str) -> AppTest:
    """The dashboard as a browser would first ask for ``tab``."""
    found = AppTest.from_file(str(APP), default_timeout=240)
    found.session_state["tab"], found.session_state["keep_most"] = tab, 400  # vectors: t-SNE is slow
    return found.run()


def output(page: Any) -> list[str]:
    """All that is shown but the widgets themselves."""
    found, todo = [], [page.main, page.sidebar]
    while todo:
        node = todo.pop()
        todo += getattr(node, "children", {}).values()
        if node.type not in ("slider", "main", "sidebar") and hasattr(node, "proto"):
            found.append(f"{node.type} {node.proto}")
    return sorted(found)


def other(slider: Any) -> Any:
    """Another place of a slider."""
    if isinstance(slider.value, tuple | list):
        return slider.min, slider.min + (slider.max - slider.min) * 2 / 3
    return type(slider.value)(slider.max if slider.value == slider.min else slider.min)


def moved(tab: str) -> int:
    """Move every slider of a tab by itself, also those that come with another choice of its buttons and lists; each
    must change what is shown. Their number."""
    first = page(tab)
    asked = [*first.main.radio, *first.main.selectbox]
    ways = [(widget.key, place) for widget in asked for place in range(len(widget.options))][:CHOICES] or [(None, 0)]
    assert output(first) == output(first.run()), "what nobody touched must not change"
    seen: set[str] = set()
    for key, option in ways:

        def fresh(key: str | None = key, option: int = option) -> AppTest:
            found = page(tab)
            if key is not None:
                widget = next(w for w in (*found.main.radio, *found.main.selectbox) if w.key == key)
                if widget.type == "selectbox":  # whose options are shown otherwise than they are
                    widget.select_index(option).run()
                else:
                    widget.set_value(widget.options[option]).run()
            assert not found.exception and not found.error, (tab, option, found.exception, found.error)
            return found

        for place in [n for n, slider in enumerate(fresh().slider) if slider.label not in seen]:
            found = fresh()
            before, slider = output(found), found.slider[place]
            value = other(slider)
            slider.set_value(value).run()
            assert not found.exception and not found.error, (tab, slider.label, found.exception, found.error)
            assert output(found) != before, f"{tab}: {slider.label} at {value} changes nothing"
            seen.add(slider.label)
    return len(seen)


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """What the buttons would give, by name."""
    given: dict[str, str] = {}
    monkeypatch.setattr(st, "download_button", lambda label, data, *_, **__: given.update({label: data}))
    yield given


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Go to a project as `make dashboard` would."""

    def go(folder: Path) -> None:
        monkeypatch.chdir(folder)
        monkeypatch.setattr("sys.argv", ["app.py", "data", "reports"])
        monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])  # AppTest leaves the app there
        logging.getLogger("streamlit").setLevel(logging.ERROR)

    return go


def look(tab: str, downloads: dict[str, str]) -> None:
    """A tab shows something, what it gives away is not empty, and its sliders work."""
    page(tab)
    assert downloads
    for name, text in downloads.items():
        assert text.count("\n") > 1, f"{tab}: {name} is empty"
    assert moved(tab) > 0


@pytest.mark.slow
@pytest.mark.parametrize("tab", TABS)
def test_every_slider_of_a_tab_changes_it(folder: Path, tab: str, at: Any, downloads: dict[str, str]) -> None:
    at(folder)
    look(tab, downloads)


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / "reports/scorecard.json").exists(), reason="the pipeline has not run in this checkout")
@pytest.mark.parametrize("tab", TABS)
def test_the_run_of_this_checkout(tab: str, at: Any, downloads: dict[str, str]) -> None:
    at(ROOT)
    look(tab, downloads)


def test_nothing_to_look_at(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no layer; run `make`"):
        script.main(str(tmp_path / "data"), str(tmp_path / "reports"))


def test_a_stage_that_did_not_run_is_said(folder: Path, tmp_path: Path, at: Any) -> None:
    """Only what extract wrote is there."""
    for name in ("activations", "corpus", "lm"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).symlink_to(folder / "data" / name)
    (tmp_path / "reports").mkdir()
    at(tmp_path)
    for tab in TABS:
        found = page(tab)
        assert not found.exception and not found.error
        assert tab in ("Documents", "Dimensions") or any("has not run" in info.value for info in found.info), tab


LABELS: dict[str, Any] = {
    "some": lambda i: None if i % 3 == 0 else "ab"[i % 2],
    "none": lambda i: None,
    "one": lambda i: "only" if i % 2 else None,
    "like numbers": lambda i: ["1", "2", "nan", "None", ""][i % 5],
    "as many as documents": lambda i: f"label {i}",
}


@pytest.mark.parametrize("labels", LABELS)
def test_labels_may_be_missing(folder: Path, tmp_path: Path, labels: str, at: Any) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "reports").symlink_to(folder / "reports")
    for other in (folder / "data").iterdir():
        if other.name != "corpus":
            (tmp_path / "data" / other.name).symlink_to(other)
    corpus = tmp_path / "data" / "corpus"
    shutil.copytree(folder / "data" / "corpus", corpus, copy_function=shutil.copyfile)  # with its own time: a new stamp
    table = pq.read_table(corpus / "corpus.parquet")
    for column, of in (("label", LABELS[labels]), ("title", LABELS["some"])):
        values = pa.array([of(row) for row in range(table.num_rows)], pa.string())
        table = table.set_column(table.schema.get_field_index(column), column, values)
    pq.write_table(table, corpus / "corpus.parquet")
    meta = json.loads((corpus / "meta.json").read_text())
    write_json(corpus / "meta.json", {**meta, "sha256": sha256(corpus / "corpus.parquet")})

    at(tmp_path)
    for tab in ("Documents", "Dimensions", "Clustering", "Similarity"):
        found = page(tab)
        assert not found.exception and not found.error, (tab, found.exception, found.error)


def test_any_latent_has_a_page_beside_the_dashboard(folder: Path, tmp_path: Path) -> None:
    """Also one whose page the report did not write."""
    reports = Path(shutil.copytree(folder / "reports", tmp_path / "reports"))
    (reports / "latents/0/3.html").unlink()
    client = TestClient(Starlette(routes=routes(Project(folder / "data", reports))))
    page = client.get("/pages/0/3.html")
    assert page.status_code == 200 and "Latent 3" in page.text
    assert client.get("/report.html").text == (reports / "report.html").read_text()
    for wrong in ("0/32", "0/-1", "7/0", "x/0", "0/../meta"):
        assert client.get(f"/pages/{wrong}.html").status_code == 404, wrong


def test_before_the_report_there_are_no_pages(folder: Path, tmp_path: Path) -> None:
    assert routes(Project(folder / "data", tmp_path)) == []


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["language"], indirect=True)
def test_in_a_browser(folder: Path, tmp_path: Path) -> None:
    """`make dashboard`, every tab, a slider moved by the keyboard, a file downloaded; nothing leaves the machine."""
    if (binary := browser.path()) is None:
        pytest.skip("no Chromium on the search path, nor named by CHROME_PATH")
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home, log = f"http://127.0.0.1:{port}/", tmp_path / "log"
    words = [sys.executable, "-m", "src.dashboard", "data", "reports", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with log.open("w") as file:
        server = subprocess.Popen(words, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT)
    try:
        _answers(f"{home}_stcore/health", server, log)
        with browser.opened(binary, tmp_path / "profile", home, home.replace("http", "ws")) as tab:
            tab.size(1300, 900)
            tab.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
            for name in TABS:
                tab.visit(f"{home}?tab={quote(name)}")
                tab.wait(SHOWN)
                assert tab.run(EXCEPTIONS) == 0, (name, tab.run("document.body.innerText"))
            tab.visit(f"{home}?tab=Documents")
            tab.wait(SHOWN)
            slider = "document.querySelector('[data-testid=stMain] input[type=range]')"
            before = tab.run(f"{slider}.value")
            tab.run(f"{slider}.focus()")
            tab.press("ArrowRight", 39)
            tab.wait(f"{slider}.value !== '{before}'")
            tab.run("document.querySelector('[data-testid=stDownloadButton] button').click()")
            end = time.monotonic() + 30
            while not (found := list(tmp_path.glob("*.csv"))) and time.monotonic() < end:
                time.sleep(0.2)
            assert found and found[0].read_text().startswith("document,title,label")
            tab.visit(f"{home}pages/0/3.html")
            assert tab.run("document.querySelector('h1').textContent").startswith("Latent 3")
            assert not tab.complaints
    finally:
        server.terminate()
        server.wait()


# Streamlit shows "stSkeleton" or a running man until a script has ended.
SHOWN = """!!document.querySelector('[data-testid=stDownloadButton]') &&
  !document.querySelector('[data-testid=stSkeleton], [data-testid=stStatusWidget], [data-testid=stSpinner]')"""
EXCEPTIONS = "document.querySelectorAll('[data-testid=stException], [data-testid=stAlertContentError]').length"


def _answers(url: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + 60
    while True:
        assert server.poll() is None and time.monotonic() < end, log.read_text()
        try:
            with urlopen(url):
                return
        except OSError:
            time.sleep(0.2)
