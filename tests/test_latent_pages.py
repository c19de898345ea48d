"""The latents' pages: what a text holds stays text, every link leads somewhere, and the bytes repeat."""

import base64
import hashlib
import json
import math
import re
import runpy
import shutil
import sys
from collections.abc import Iterator
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from planted import DEAD, DENSE, EVIL, LATENTS, SILENT_ID, explained, planted

from apps.show.card import card
from benchmarks import browser
from stages.report.causes import Causes
from stages.report.families import SITE, Families
from stages.report.glossary import WORDS
from stages.report.histogram import histogram, ticks
from stages.report.judged import verdict
from stages.report.latents import context, site
from stages.report.layer import chosen, read_layer
from strata.interpretation.labels import open_named
from strata.interpretation.neighbours import nearest
from strata.interpretation.read import open_latents
from strata.pages.readable import best_first, by_label, excerpt, inert, inline, marked, percent, shade

NOTHING = Causes({}, {}, {})
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data/latents/` with two layers."""
    root = tmp_path_factory.mktemp("latents")
    for layer in (3, 9):
        planted(root / str(layer), layer)
    return root


def files(latents: Path, pages: int = 10, selected: tuple[int, ...] = (DEAD,)) -> dict[str, str]:
    return dict(site([read_layer(open_latents(latents / str(layer)), pages, selected) for layer in (3, 9)], NOTHING))


@pytest.fixture(scope="module")
def written(latents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`reports/` with the pages in it."""
    root = tmp_path_factory.mktemp("reports")
    (root / "report.html").write_text("<!doctype html>", encoding="utf-8")
    for name, text in files(latents).items():
        (root / "latents" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "latents" / name).write_text(text, encoding="utf-8")
    return root / "latents"


class Parsed(HTMLParser):
    """The tags, the attributes, the text and the scripts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.scripts: list[str] = []
        self.text, self.in_script = "", False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, *attribute) for attribute in attrs]
        if tag == "script":
            self.scripts.append("")
        self.in_script = tag == "script"

    def handle_endtag(self, tag: str) -> None:
        self.in_script = False

    def handle_data(self, data: str) -> None:
        if self.in_script:
            self.scripts[-1] += data
        self.text += data


def pages(root: Path) -> Iterator[tuple[Path, Parsed]]:
    for file in sorted(root.rglob("*.html")):
        yield file, Parsed(file.read_text(encoding="utf-8"))


# --- the pages ------------------------------------------------------------------------------------------------------


def test_what_a_text_holds_is_inert(written: Path):
    for file, page in pages(written):
        index = file.name == "index.html" and file.parent != written
        assert page.tags.count("script") == (3 if index else 1 if file.parent == written else 2), file
        assert not [name for _, name, _ in page.attributes if name.startswith("on") or name == "autofocus"], file
        assert not {"b", "img", "iframe"} & set(page.tags), file
        if not index:
            digest = base64.b64encode(hashlib.sha256(page.scripts[-1].encode()).digest()).decode()
            allowed = f"script-src 'sha256-{digest}';"
            assert any(tag == "meta" and allowed in (value or "") for tag, _, value in page.attributes)
        assert "\x1b" not in file.read_text(encoding="utf-8")
    page = Parsed((written / "9" / "0.html").read_text(encoding="utf-8"))
    for evil in EVIL:
        assert evil in page.text, f"{evil} is shown as it is"


def test_an_indexs_data_are_inert_and_whole(latents: Path, written: Path):
    page = Parsed((written / "9" / "index.html").read_text(encoding="utf-8"))
    data = json.loads(page.scripts[0])
    assert not set("<>&") & set(page.scripts[0])
    assert all(len(data[name]) == LATENTS for name in ("text", "tokens", "context", "state", "density", "importance"))
    assert data["text"][1] == f"latent 1 {EVIL[1]}"
    assert data["states"][data["state"][DEAD]] == "dead" and data["states"][data["state"][DENSE]] == "density"
    assert (data["importance"][4], data["density"][4], data["score"][0]) == ("1.2", "20 %", "0.9")
    page_of_4 = Parsed((written / "9" / "4.html").read_text(encoding="utf-8")).text
    assert "importance1.2 rank" in page_of_4 and "density20 % of" in page_of_4, "rounded as in the index"
    assert sorted(data["place"]) == list(range(LATENTS))
    assert data["pages"] == read_layer(open_latents(latents / "9"), 10, [DEAD]).ids
    assert inert({"a": EVIL[0] + "\u2028"}) == json.dumps({"a": EVIL[0] + "\u2028"}, separators=(",", ":")).replace(
        "<", "\\u003c"
    ).replace(">", "\\u003e")


def test_links_lead_somewhere_and_nothing_leaves_the_folder(written: Path):
    links = 0
    for file, page in pages(written):
        ids = {value for _, name, value in page.attributes if name == "id"}
        for tag, name, value in page.attributes:
            if name not in ("href", "src"):
                continue
            assert value and not re.match(r"[a-z]+:|//", value), f"{file}: {tag} {value}"
            path, _, fragment = value.partition("#")
            assert (file.parent / path).resolve().exists(), f"{file}: {value}"
            if path.endswith("index.html") and fragment:
                assert int(fragment) < LATENTS
            elif not path:
                assert fragment in ids
            links += 1
    assert links > 100
    for name in ("latents.css", "latents.js"):
        assert not re.findall(r"https?:|@import|url\(", (written / name).read_text(encoding="utf-8"))


def test_the_bytes_repeat(latents: Path):
    assert files(latents) == files(latents)


def test_which_latents_get_a_page(latents: Path):
    statistics = read_layer(open_latents(latents / "9"), 0).statistics
    by_importance = sorted((row for row in statistics if row["kept"]), key=lambda row: -row["importance"])
    assert chosen(statistics, 10) == [row["latent"] for row in by_importance[:10]]
    assert DENSE not in chosen(statistics, 38) and DENSE in chosen(statistics, 39)
    assert set(chosen(statistics, LATENTS)) == set(range(LATENTS)) - {DEAD}, "living ones only"
    assert set(chosen(statistics, 0, [DEAD, 5, 5, 4096])) == {DEAD, 5}


def test_a_dead_latent_says_so_and_nothing_stands_in(written: Path):
    page = Parsed((written / "9" / f"{DEAD}.html").read_text(encoding="utf-8"))
    assert "Dead: never active on any of the 1,000 tokens." in page.text
    assert "mark" not in page.tags and "svg" not in page.tags and "Strongest" not in page.text


def test_a_page_says_what_is_known(written: Path):
    text = (written / "9" / "0.html").read_text(encoding="utf-8")
    page = Parsed(text)
    for heading in (
        "Strongest",
        "From strong to weak",
        "At random",
        "Near misses",
        "Silent",
        "Logit lens",
        "Neighbours",
    ):
        assert heading in page.text
    assert page.text.index("Strongest") < page.text.index("From strong") < page.text.index("Near misses")
    assert "rank 1 of 39" in page.text
    assert page.text.index("rule latent 0") < page.text.index("lm latent 0"), "the better explanation first"
    assert f"<s>latent 0 {escape(EVIL[0])}</s>" in text, "an explanation at chance is struck"
    assert text.count('<details class="refuted">') == 1, "and the other one is not"
    assert "better than chance. Not above chance: Pearson r." in page.text
    assert "Tells contexts apart no better than chance: on 19 contexts 99 of 100 guesses get 0.77 or less." in page.text
    assert "tenth 10, the strongest" in page.text and "tenth 1, the weakest" in page.text
    assert "100 % of 1,000 tokens" in " ".join(page.text.split())
    assert text.count("<svg") == 1 and "–0" not in text and "nan" not in page.text.lower()
    assert 'class="a10 peak" data-v="8"' in text
    assert re.search(r'<mark class="a\d+" data-v="[\d.]+">', text)


def test_a_family_is_shown_and_its_map_is_linked(latents: Path):
    labels = [
        -2 if latent == DEAD else 0 if latent in (0, 1, 30) else 1 if latent == 2 else -1 for latent in range(LATENTS)
    ]
    table = [
        {"cluster": n, "name": f"name {EVIL[0]}", "size": size, "medoid": m} for n, size, m in ((0, 3, 1), (1, 1, 2))
    ]
    families = Families(9, {}, b"", f"<!doctype html>{SITE}", labels, table)
    layer = read_layer(open_latents(latents / "9"), 3, families=families)
    made = dict(site([layer], NOTHING))
    page = made["9/0.html"]
    assert (
        'href="map.html#family=0"' in page and 'href="map.html#latent=0"' in page and escape(f"name {EVIL[0]}") in page
    )
    relatives = re.findall(r'<li><a href="([^"]+)">', page)
    assert relatives == ["1.html", "index.html#30"], "the most interesting first; one of them has no page"
    assert "It is alone" in made["9/2.html"]
    assert 'href="map.html"' in made["9/index.html"] and 'href="9/map.html"' in made["index.html"]
    told = json.loads(Parsed(made["9/map.html"]).scripts[0])
    assert told == {"pages": layer.ids, "names": {}}, "no name is by a language model or a person"
    assert "map.html" not in "".join(text for name, text in files(latents).items() if name.endswith(".html"))


def test_texts_of_their_own_are_named(latents: Path, written: Path):
    for layer, named in ((3, True), (9, False)):
        for name in ("index.html", "0.html"):
            assert ("on questions.csv" in Parsed((written / str(layer) / name).read_text()).text) == named
        assert ("on questions.csv" in card(open_latents(latents / str(layer)), 0, 100, False)) == named


def test_a_dropped_latent_says_why(latents: Path):
    made = files(latents, 0, (DENSE,))
    assert "dropped: density" in Parsed(made[f"9/{DENSE}.html"]).text


def test_a_layer_without_language_model_labels_and_explanations(latents: Path, tmp_path: Path):
    folder = planted(tmp_path / "9", 9)
    for name in ("logits", "enrichment", "explanations", "rules", "neighbours"):
        (folder / f"{name}.parquet").unlink()
    made = dict(site([read_layer(open_latents(folder), 3, [SILENT_ID])], NOTHING))
    page = Parsed(made["9/0.html"])
    assert "Strongest" in page.text and "Logit lens" not in page.text and "Explanation" not in page.text
    names = json.loads(Parsed(made["9/index.html"]).scripts[0])["text"]
    assert names == [row["name"] or "" for row in open_latents(folder).statistics().to_pylist()]
    assert "No name yet" in Parsed(made[f"9/{SILENT_ID}.html"]).text and "No name yet" not in page.text


def test_what_explain_says_stands_over_what_interpret_says(latents: Path, tmp_path: Path):
    """On the pages, in the index and on the card; the other names stay."""
    shutil.copytree(latents / "9", tmp_path / "latents" / "9")
    over = explained(tmp_path / "explained" / "9", tmp_path / "latents" / "9")
    known = open_latents(tmp_path / "latents" / "9", over)
    made, words = dict(site([read_layer(known, 3)], NOTHING)), f"words {EVIL[0]}"
    assert words in Parsed(made["9/0.html"]).text
    names = json.loads(Parsed(made["9/index.html"]).scripts[0])["text"]
    assert names[0] == words and names[1] == f"latent 1 {EVIL[1]}" and names[DEAD] == ""
    assert words in card(known, 0, 100, False) and known.names()[0] == words
    assert known.rows("statistics", 0)[0]["named_by"] == "lm" and known.rows("statistics", 1)[0]["named_by"] == "rule"
    assert open_named(tmp_path / "latents" / "9").names() == known.names()
    assert open_latents(tmp_path / "latents" / "9").names()[0] == f"latent 0 {EVIL[0]}"


def causes(latent: int) -> Causes:
    """What steering and inversion say of one latent of layer 9, with what a page must not run in every text."""
    best = {"strength": 0.5, "effect": 2.5, "kl": 0.3}
    line = {"difference": 1.25, "low": 0.5, "high": 2.0, "beats": True}
    points = [{"strength": s, "promoted": s, "follows": None, "kl": s * s} for s in (-1.0, 0.0, 1.0)]
    said = {"condition": EVIL[0], "strength": 1.0, "prompt": EVIL[1], "text": EVIL[2]}
    said |= {"fires": 0.25, "code": 0.1, "perplexity": 12.0, "repetition": 0.5}
    steered = {
        "latent": latent,
        "promoted": {"best": {"latent": best, "DiffMean": best}, "against": {"DiffMean": line}},
    }
    steered |= {"promoted_tokens": EVIL, "doses": {"latent": points, "DiffMean": points}, "written": [said]}
    inverted = {"latent": latent, "text": EVIL[0], "pieces": EVIL, "values": [0.0, 8.0, *[1.0] * (len(EVIL) - 2)]}
    inverted |= {"activation": 8.0, "corpus_max": 7.5, "random": 3.0, "template": None, "cross_entropy": 9.0}
    inverted["curves"] = [{"method": "greedy", "calls": calls, "activation": 4.0 * calls} for calls in (1, 2)]
    shares = {"beats_random": 1.0, "beats_corpus": 1.0}
    twins = {"frozen_decoder": {"latents": 2, "own": 3.25, "effect": 2.75}, "frozen_encoder": {"latents": 0}}
    rules = {"sae": {"value": 0.604}, "controls": {"frozen_decoder": {"value": 0.624}, "untrained": {"value": 0.541}}}
    return Causes(
        {9: {"prompts": 4, "kl": 0.5, "beating_all": 1.0, "twins": twins, "latents": [steered]}},
        {9: {"latents": [inverted | {"method": "greedy"}], **shares}},
        {9: {"rules": rules}},
    )


def test_what_steering_and_inversion_found_is_on_the_page(latents: Path):
    made = dict(site([read_layer(open_latents(latents / "9"), 3, [5])], causes(5)))
    page = Parsed(made["9/5.html"])
    assert "2.5" in page.text and "1.25 (0.5 to 2)" in page.text
    assert "Activation 8" in page.text and "the corpus reaches 7.5" in page.text and "<b>&amp;" in page.text
    assert "Latents of the twin “frozen decoder” reach 2.75 on average, those of the SAE 3.25." in page.text
    assert "frozen encoder" not in page.text, "none of its latents was steered"
    said = (
        "Latents of this SAE reach 0.60 on average; those that fire as often "
        "of the twin “frozen decoder” 0.62, of random directions 0.54."
    )
    assert said in page.text
    assert "Steering" not in Parsed(made["9/0.html"]).text and said in Parsed(made["9/0.html"]).text
    pictures = causes(5).pictures()
    assert pictures == causes(5).pictures() and pictures.keys() == {"steering-9-5", "inversion-9"}
    assert all(picture.startswith(b"\x89PNG") for picture in pictures.values())


def test_nothing_interpreted_is_a_page_that_says_so():
    assert "None was interpreted" in dict(site([], NOTHING))["index.html"]


# --- the parts ------------------------------------------------------------------------------------------------------


def test_a_context_marks_what_is_active():
    example = {"position": 5, "first": 4, "pieces": [" a", " <b>", "\n", " "], "values": [0.0, 4.0, 0.3, 1.0]}
    assert context(example, 4.0) == (
        'a <mark class="a10 peak" data-v="4">&lt;b&gt;</mark><mark class="a1" data-v="0.3">↵</mark>'
        '<mark class="a3" data-v="1">␣</mark>'
    )
    assert [shade(value, 4.0, 10) for value in (1e-9, 0.4, 0.41, 4.0, 5.0)] == [1, 1, 2, 10, 10]


def test_white_space_can_be_seen():
    assert [inline(piece) for piece in (" of", "▁of", "a\nb", "\t", "\x1b[0m", "\u202e")] == [
        " of", " of", "a↵b", "⇥", "\\x1b[0m", "\\x202e",
    ]  # fmt: skip
    assert [marked(piece) for piece in (" of", "  ", "of", "\n")] == [(" ", "of"), ("", "␣␣"), ("", "of"), ("", "↵")]
    assert excerpt([" a", " b", "c", " d"], 1) == ("a ", "b", "c d")
    assert excerpt([" a"], 0) == ("", "a", "")
    assert percent(0.0312) == "3.12 %"


def test_a_histogram_is_as_high_as_its_counts_and_ends_at_the_largest_activation():
    drawing = histogram([0, 1, 4, 0], [0.0, 1.0, 2.0, 4.0, 8.0], 2.5, 3.0)
    heights = [float(height) for height in re.findall(r'<rect .*? height="([\d.]+)"', drawing)]
    assert heights[1] == pytest.approx(4 * heights[0], abs=0.4)
    assert "2 – 3: 4 tokens" in drawing, "the bin goes to 4, but no activation is above 3"
    numbers = re.findall(r">([\d.]+)</text>", drawing)
    assert numbers[-3:] == ["0", "2", "4"] and {"1", "2", "3"} <= set(numbers[:-3]), "both axes have numbers"
    assert ">activation</text>" in drawing and ">tokens</text>" in drawing
    assert histogram([0, 0], [0.0, 1.0, 2.0], 0.0, 0.0) == ""
    assert "0 – " not in histogram([3, 1], [0.0, 1.0, 2.0], 0.5, 2.0), "no logarithm of 0"


@pytest.mark.parametrize(
    "low, high, expected", [(1, 1000, [1, 10, 100, 1000]), (120, 260, [150, 200, 250]), (0.9, 1.1, [0.9, 0.95, 1]),
                            (1e-9, 1e3, [1e-9, 1e-6, 1e-3, 1, 1e3]), (1.01, 1.04, [1.04])],
)  # fmt: skip
def test_ticks_are_round_and_few(low: float, high: float, expected: list[float]):
    assert ticks(low, high) == pytest.approx(expected)


def test_a_verdict_says_what_scores_that_disagree_mean():
    def judged(
        accuracy: float | None, chance: float = 0.5, f1: float = 0.6, items: int = 40
    ) -> tuple[bool | None, str]:
        scores = {"balanced_accuracy": (accuracy, chance), "f1": (f1, 0.0), "pearson": (0.0, 0.2)}
        names = ("balanced_accuracy", "f1", "pearson", "spearman", "embedding", "fuzzing", "intruder")
        row = {name: scores.get(name, (None, None))[0] for name in names}
        row |= {f"{name}_chance": scores.get(name, (None, None))[1] for name in names}
        return verdict(row | {"items": items, "unparsed": 0})

    told, words = judged(0.5)
    assert told is False and "no better than chance: on 40 contexts 99 of 100 guesses get 0.68 or less" in words
    assert words.endswith("detection F1. F1 forgives an explanation that says yes to nearly every context.")
    assert judged(0.68)[0] is False and judged(0.69)[0] is True, "2.33 standard errors are 0.184"
    assert judged(0.65, items=400)[0] is True
    assert judged(0.8, 0.85)[0] is False and "another latent's" in judged(0.8, 0.85)[1]
    assert judged(0.9) == (True, "Tells contexts apart better than chance. Not above chance: Pearson r.")
    assert judged(None)[0] is None and judged(0.9, items=0)[0] is None


def test_the_words_of_the_pages_are_those_of_the_glossary():
    lines = (ROOT / "docs/glossary.md").read_text(encoding="utf-8").splitlines()
    said = {}
    for line in lines:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| **") and len(cells) == 2:
            meaning = re.sub(r" \(\[[^]]+\]\([^)]+\)\)|[*_]", "", cells[1])
            said |= dict.fromkeys(re.findall(r"\*\*(.+?)\*\*", cells[0]), meaning)
    assert {word: said.get(word) for word in WORDS} == WORDS


def test_explanations_and_labels_are_ordered_by_what_they_prove():
    notes = [{"balanced_accuracy": value, "balanced_accuracy_chance": chance} for value, chance in
             ((None, None), (0.9, 0.8), (0.7, None), (0.8, 0.5))]  # fmt: skip
    assert [note["balanced_accuracy"] for note in best_first(notes)] == [0.8, 0.7, 0.9, None]
    tests = [{"label": label, "level": level, "q": q} for label, level, q in
             (("a", "token", 0.0), ("b", "document", 0.1), ("b", "token", 0.9))]  # fmt: skip
    assert [label for label, _ in by_label(tests)] == ["b", "a"]


def test_neighbours_equal_brute_force():
    rng = np.random.default_rng(0)
    decoder = rng.normal(size=(1500, 12)).astype(np.float32)
    alive = rng.random(1500) > 0.1
    found = nearest(decoder, alive, 4)
    unit = decoder / np.linalg.norm(decoder, axis=1, keepdims=True)
    for latent in (0, 700, 1499):
        cosine = np.where(alive, unit @ unit[latent], -2.0)
        cosine[latent] = -2.0
        mine = found["latent"] == latent
        assert mine.sum() == (4 if alive[latent] else 0)
        if alive[latent]:
            assert found["neighbour"][mine].tolist() == np.argsort(-cosine)[:4].tolist()
            assert found["cosine"][mine] == pytest.approx(np.sort(cosine)[::-1][:4], abs=1e-6)
    assert len(nearest(decoder[:2], np.array([True, False]), 4)["latent"]) == 0, "one alone has none"


# --- the card in the terminal ---------------------------------------------------------------------------------------


def show(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["show", *words])
    runpy.run_module("src.show", run_name="__main__")


def test_show_prints_a_card(latents: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    show(monkeypatch, "9", "0", str(latents))
    said = capsys.readouterr().out
    assert said.startswith("layer 9 · latent 0\n")
    for word in ("rule: latent 0", "importance 2", "(rank 1 of 39)", "strongest", "neighbours", "«", "promoted"):
        assert word in said
    assert "\x1b" not in said, "no colour where nobody looks, and no escapes from the text"
    assert max(map(len, said.splitlines())) <= 120
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    show(monkeypatch, "9", "0", str(latents))
    said = capsys.readouterr().out
    assert "\x1b[1;4;38;5;16;48;5;208m" in said and "\x1b[31m" not in said
    assert "«" not in said


def test_show_says_that_a_latent_is_dead(
    latents: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    show(monkeypatch, "9", str(DEAD), str(latents))
    assert capsys.readouterr().out == f"layer 9 · latent {DEAD}   dead\nnever active on any of the 1,000 tokens\n"


@pytest.mark.parametrize(
    "words, code, sentence",
    [
        (["9", "40"], 1, "latent 40 is out of range: layer 9 has latents 0 to 39"),
        (["9", "-1"], 2, "the latent is '-1', not a whole number"),
        (["nine", "1"], 2, "the layer is 'nine', not a whole number"),
        (["12", "1"], 1, "meta.json is missing"),
    ],
)
def test_show_refuses_in_one_sentence(
    latents: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    sentence: str,
):
    with pytest.raises(SystemExit) as end:
        show(monkeypatch, *words, str(latents))
    said = capsys.readouterr()
    assert end.value.code == code and said.out == ""
    assert sentence in said.err and said.err.count("\n") == 1


# --- in a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Page]:
    if (binary := browser.path()) is None:
        pytest.skip("no Chromium is installed; CHROME_PATH may name one")
    with browser.opened(binary, tmp_path_factory.mktemp("profile")) as page:
        yield page


def test_every_page_opens_without_complaints(written: Path, tab: browser.Page):
    for width in (1280, 390):
        tab.size(width, 900)
        for file, _ in pages(written):
            tab.open(file)
            assert tab.complaints == [], file
            assert tab.run("document.documentElement.scrollWidth") <= width, f"{file} is wider than {width}"


def test_the_index_searches_and_sorts(written: Path, tab: browser.Page):
    def shown() -> list[int]:
        return tab.run("[...document.querySelectorAll('tbody tr td.id')].map((cell) => parseInt(cell.textContent))")

    def search(words: str) -> list[int]:
        tab.run(f"query.value = {json.dumps(words)}; query.dispatchEvent(new Event('input'))")
        return shown()

    tab.size(1280, 900)
    tab.open(written / "9" / "index.html")
    importance = {latent: (2.0 + latent % 5) / (latent + 1) for latent in range(LATENTS) if latent not in (DEAD, DENSE)}
    falling = sorted(importance, key=lambda latent: (-importance[latent], latent))
    assert shown() == falling, "what the filters kept, the most interesting first; here interest is importance"
    for bound in (max, min):
        tab.run("document.querySelector('[data-sort=importance]').click()")
        assert math.isclose(importance[shown()[0]], bound(importance.values()))
    tab.run("document.querySelector('[data-sort=id]').click()")
    assert shown() == sorted(importance)
    assert search("latent 12")[0] == 12
    assert search("7")[0] == 7, "an id finds also what the filters dropped"
    assert search("#7") == [7]
    assert search("ALERT(1)") and search("nothing like this") == []
    assert "has “nothing like this”" in tab.run("document.querySelector('tbody').textContent")
    assert tab.run("how.hidden")
    tab.open(written / "9" / "index.html", "#3")
    assert shown() == [3] and not tab.run("how.hidden") and "LAYER=9" in tab.run("how.textContent"), "it has no page"
    assert "/pages/9/3.html" in tab.run("how.textContent")

    # The best matches come first: those of the name, whole words before parts; what was found is marked.
    found = search("latent 3")
    assert found[0] == 3 and {13, 23, 30, 31} <= set(found)
    assert min(found.index(30), found.index(31)) < max(found.index(13), found.index(23)), "beginnings before parts"
    marked = "[...document.querySelector('tbody tr').querySelectorAll('mark.hit')].map((mark) => mark.textContent)"
    assert tab.run(marked)[:2] == ["latent", "3"]

    # The address says what is shown, and shows it again.
    tab.run("document.querySelector('[data-sort=id]').click()")
    address = tab.run("location.hash")
    assert "q=latent+3" in address and "sort=id" in address
    before = shown()
    tab.open(written / "9" / "index.html", address)
    assert shown() == before and tab.run("query.value + sort.value") == "latent 3id"
    tab.run("state.value = 'all'; state.dispatchEvent(new Event('change'))")
    assert "show=all" in tab.run("location.hash")
    assert search("") and tab.run("location.hash") == "#show=all&sort=id"
    assert tab.complaints == []
    assert math.isclose(tab.run("document.querySelectorAll('tbody script').length"), 0)


def test_words_explain_themselves_and_buttons_copy(written: Path, tab: browser.Page):
    tab.size(390, 800)
    tab.open(written / "9" / "0.html")
    meaning = "document.getElementById('meaning')"
    for word in ("interest", "chance", "lift"):
        place = f"[...document.querySelectorAll('dfn')].find((word) => word.textContent === '{word}')"
        tab.run(f"{place}.focus()")
        assert tab.run(f"{meaning}.textContent") == WORDS[word] and not tab.run(f"{meaning}.hidden")
        assert tab.run(f"{meaning}.getBoundingClientRect().right") <= 390
    tab.run("document.dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape'}))")
    assert tab.run(f"{meaning}.hidden")

    tab.run(
        "copied = []; Object.defineProperty(navigator, 'clipboard', {value: {writeText: async (t) => copied.push(t)}})"
    )
    for what in ("link", "contexts", "show", "steer"):
        tab.run(f"document.querySelector('[data-copy={what}]').click()")
    link, contexts, show, steer = tab.run("copied")
    assert link.endswith("/9/0.html") and show == "python -m src.show 9 0"
    compile(steer, "steer", "exec")
    assert "{0: strata.Set(8)}, layer=9" in steer
    rows = json.loads(contexts)
    assert len(rows) == 7 and {row["kind"] for row in rows} >= {"top", "decile-1", "near"}
    assert rows[0]["activation"] == 8.0 and rows[0]["latent"] == 0 and rows[0]["active"][0][1] == 8.0
    assert tab.complaints == []
