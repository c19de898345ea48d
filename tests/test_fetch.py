"""Stage fetch: every source on real files, no markup left, the same bytes twice, one sentence when it fails."""

import bz2
import hashlib
import json
import re
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kagglehub.cache import Cache, get_cached_path
from kagglehub.handle import parse_dataset_handle

from stages import fetch_corpus, fetch_texts
from strata.corpus import corpus, mediawiki, place, read, sources, tables, wikitext
from strata.corpus.document import Document
from strata.corpus.duplicates import NearDuplicates, jaccard, shingle
from strata.run import params
from strata.run.door import BadInput

ROOT = Path(__file__).parents[1]
DEBRIS = re.compile(
    r"\{\{|\}\}|\[\[|\]\]|\{\||\|\}|''|</?(?:ref|br|small|div|span|nowiki|math)\b|\bthumb\||\|\||__[A-Z]+__|&[a-z]+;"
    r"|\(\s*[;,:]|\(\s*\)|\[\s*\]|\d+px\||^\s*[*#:;|!]|^(?:Category|File|Image):|[^\S\n]{2,}| [,;.)]\B|\bcite \w+ ?\|",
    re.MULTILINE,
)


def knobs(*given: dict[str, Any], **changes: Any) -> corpus.Corpus:
    """Params that keep everything, but for ``changes``."""
    plain = {"documents": None, "min_chars": 1, "max_chars": None, "near_duplicates": None, "balance": None}
    shares = {"validation": 0.2, "test": 0.2, "stratify": False, "max_bad_rows": 0}
    return params.check({"sources": list(given), **plain, **shares, **changes}, corpus.Corpus, "corpus")


def build(folder: Path, *given: dict[str, Any], seed: int = 0, **changes: Any) -> dict[str, Any]:
    folder.mkdir()
    return corpus.build(knobs(*given, **changes), seed, folder)


def texts(folder: Path, split: str | None = None) -> list[str]:
    return [document["text"] for document in read.documents(folder, split)]


def written(path: Path, text: str) -> dict[str, Any]:
    """A file with ``text``, as a source."""
    path.write_text(text, encoding="utf-8", newline="")
    return {"source": str(path)}


@pytest.fixture
def table(tmp_path: Path) -> dict[str, Any]:
    """100 documents of 10 words with 5 labels, `e` the rarest."""
    labels = [*"a" * 40, *"b" * 30, *"c" * 20, *"d" * 8, *"ee"]
    rows = (f"{label},{' '.join(f'{label}{n}w{i}' for i in range(10))}" for n, label in enumerate(labels))
    return {**written(tmp_path / "table.csv", "\n".join(["label,text", *rows])), "label": "label"}


# The default text: Wikipedia.


@pytest.fixture(scope="session")
def wikipedia(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus that params.yaml asks for, made by the script while every socket refuses."""
    folder = tmp_path_factory.mktemp("wikipedia")

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was reached for")

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        for name in ("connect", "connect_ex", "sendto"):
            patch.setattr(socket.socket, name, refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        fetch_corpus.main(str(folder / "corpus"))
    return folder / "corpus"


@pytest.mark.slow
def test_default_corpus(wikipedia: Path) -> None:
    meta = read.corpus_meta(wikipedia)
    rows = list(read.documents(wikipedia))
    assert meta["documents"] == len(rows) > 1300 and meta["labels"] > 100 and meta["chars"] > 2.5e6
    assert [row["document"] for row in rows] == list(range(len(rows)))
    assert Counter(row["split"] for row in rows) == meta["splits"]
    assert meta["chars"] == sum(len(row["text"]) for row in rows) and min(len(row["text"]) for row in rows) >= 200
    assert meta["read"] == meta["documents"] + sum(meta["dropped"].values())
    assert meta["sha256"] == hashlib.sha256((wikipedia / "corpus.parquet").read_bytes()).hexdigest()
    assert {path.name for path in wikipedia.iterdir()} == {"corpus.parquet", "meta.json"}
    assert str(ROOT) not in (wikipedia / "meta.json").read_text()
    history = [row for row in rows if row["title"].startswith("Anarchism / History / ")]
    assert history and {row["label"] for row in history} == {"Anarchism"}
    assert not any(re.search(r"/ (References|External links|See also)", row["title"]) for row in rows)


@pytest.mark.slow
def test_no_document_of_the_default_corpus_holds_markup(wikipedia: Path) -> None:
    for row in read.documents(wikipedia):
        for text in (row["text"], row["title"]):
            assert not (found := DEBRIS.search(text)), (
                row["title"],
                text[max(0, found.start() - 50) : found.end() + 50],
            )


def test_a_dump_of_another_language() -> None:
    path = sources._packaged("package:gensim-wikipedia").parent / "bgwiki-latest-pages-articles-shortened.xml.bz2"
    documents = list(mediawiki.documents(path))
    assert documents and not any(DEBRIS.search(document.text) for document in documents)


DUMP = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/"><siteinfo><namespaces>
<namespace key="6">Datei</namespace><namespace key="14">Kategorie</namespace></namespaces></siteinfo>
<page><title>Hund</title><ns>0</ns><revision><text>alt</text></revision><revision><text>Ein [[Tier|'''Tier''']].
[[Datei:Hund.jpg|mini|Bild]] [[Kategorie:Tier]]

== Name ==
Lat. ''canis''.</text></revision></page>
<page><title>Wolf</title><ns>0</ns><redirect title="Hund" /><revision><text>#REDIRECT [[Hund]]</text></revision></page>
<page><title>Talk:Hund</title><ns>1</ns><revision><text>Ja.</text></revision></page></mediawiki>"""


@pytest.mark.parametrize("name", ["dump.xml", "dump.xml.bz2", "dump.bz2"])
def test_mediawiki_dump(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(bz2.compress(DUMP.encode()) if name.endswith("bz2") else DUMP.encode())
    source = sources.resolved(sources.Source(source=str(tmp_path / name)))
    assert source.kind == "mediawiki"
    assert list(sources.documents(source)) == [
        Document("Hund", "Hund", "Ein Tier."),
        Document("Hund / Name", "Hund", "Lat. canis."),
    ]


@pytest.mark.parametrize("broken", [b"not bz2", bz2.compress(DUMP.encode())[:100], bz2.compress(DUMP.encode()[:300])])
def test_a_broken_dump_is_named(tmp_path: Path, broken: bytes) -> None:
    path = tmp_path / "dump.xml.bz2"
    path.write_bytes(broken)
    with pytest.raises(BadInput, match=r"dump\.xml\.bz2 is not a whole"):
        list(mediawiki.documents(path))


@pytest.mark.parametrize(
    ("markup", "plain"),
    [
        (
            "'''Aikido''' ({{lang|ja|合気道}}; {{IPA-ja|x}}) , an [[art|''art'']]<ref>x {{cite|y}}</ref>.",
            "Aikido (合気道), an art.",
        ),
        (
            "It is {{convert|5|to|10|km|mi|abbr=on}} long&nbsp;&mdash; [http://x.org so]  [http://y.org].",
            "It is 5 to 10 km long — so.",
        ),
        (
            "a\n{| class=x\n| cell\n|}\nb [[File:a.jpg|thumb|cap [[c|d]]]]\n* \n* item\n** {{x}}\n__NOTOC__",
            "a\nb\nitem",
        ),
        ("H<sub>2</sub>O<br/>is {{unknown|water}} ({{x}}) {{{1}}}<!-- no -->wet [[de:Wasser]]", "H2O is wet"),
        ("left {{open [[and ''unclosed [[File:b.png|thumb|x", "left"),
    ],
)
def test_wikitext(markup: str, plain: str) -> None:
    assert [text for _, text in wikitext.sections("T", markup)] == [plain]


def test_half_a_character_is_replaced_wherever_it_stands(tmp_path: Path) -> None:
    """An entity of a dump can name one, in a heading too, and JSON can hold one in any value."""
    page = "<title>T</title><ns>0</ns><revision><text>== a&amp;#xD800; ==\nx &amp;#xDFFF;</text></revision>"
    (tmp_path / "a.xml").write_text(f"<mediawiki><page>{page}</page></mediawiki>")
    build(tmp_path / "xml", {"source": str(tmp_path / "a.xml")}, validation=0.0, test=0.0)
    assert [(row["title"], row["text"]) for row in read.documents(tmp_path / "xml")] == [("T / a\ufffd", "x \ufffd")]
    line = '{"text": "a\\ud800", "id": "b\\ud800", "label": "c\\ud800", "title": "d\\ud800"}\n'
    source = {**written(tmp_path / "a.jsonl", line), "id": "id", "label": "label", "title": "title"}
    build(tmp_path / "json", source, validation=0.0, test=0.0)
    (row,) = read.documents(tmp_path / "json")
    assert [row[name] for name in ("text", "id", "label", "title")] == ["a\ufffd", "b\ufffd", "c\ufffd", "d\ufffd"]


def test_sections_have_paths_and_lists_of_sources_are_dropped() -> None:
    markup = "lead\n== A ==\na\n=== B ===\nb\n==== C ====\nc\n== References ==\nr\n=== Notes ===\nn\n== D ==\nd"
    assert list(wikitext.sections("T", markup)) == [
        ("T", "lead"),
        ("T / A", "a"),
        ("T / A / B", "b\nC\nc"),
        ("T / D", "d"),
    ]


# Files of rows.


@pytest.mark.parametrize(
    ("name", "text", "more"),
    [
        ("a.csv", 'name,kind,body\nx,1,"one, ""two"""\ny,,three\n', {}),
        ("a.csv", 'name;kind;body\r\nx;1;"one, ""two"""\r\ny;;three\r\n', {}),
        ("a.csv", '\ufeffname^kind^body\nx^1^"one, ""two"""\ny^^three\n', {"separator": "^"}),
        ("a.tsv", 'name\tkind\tbody\nx\t1\t"one, ""two"""\ny\t\tthree\n', {}),
        ("a.jsonl", '{"name": "x", "kind": 1, "body": "one, \\"two\\""}\n\n{"name": "y", "body": "three"}\n', {}),
    ],
)
def test_tables(tmp_path: Path, name: str, text: str, more: dict[str, Any]) -> None:
    source = {**written(tmp_path / name, text), "text": "body", "label": "kind", "title": "name", **more}
    found = sources.resolved(sources.Source(**source))
    assert list(sources.documents(found)) == [Document("x", "1", 'one, "two"'), Document("y", None, "three")]


def test_parquet(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"text": ["one", None], "stars": [3.0, float("nan")], "other": [b"", b""]}), tmp_path / "a.parquet"
    )
    found = sources.resolved(sources.Source(source=str(tmp_path / "a.parquet"), label="stars"))
    assert list(sources.documents(found)) == [Document("a.parquet 1", "3", "one"), Document("a.parquet 2", None, "")]


@pytest.mark.parametrize(
    ("unit", "expected"),
    [("line", ["a", "b", "c"]), (None, ["a\nb\n", "c"]), ("paragraph", ["a\nb\n", "c"]), ("file", ["a\nb\n\n \nc"])],
)
def test_plain_text(tmp_path: Path, unit: tables.Unit | None, expected: list[str]) -> None:
    source = {**written(tmp_path / "a.txt", "a\nb\n\n \nc"), "unit": unit}
    assert [d.text for d in sources.documents(sources.resolved(sources.Source(**source)))] == expected


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.csv", b"name,body\nx,y\n", r"a\.csv has no column 'text' \(asked for as text\); it has name, body"),
        ("a.csv", b"", r"a\.csv is empty"),
        ("a.csv", b"text\n\xff\xfe\n", r"a\.csv is not UTF-8"),
        ("a.csv.gz", b"text\nx", r"a\.csv\.gz cannot be read"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ', r"a\.jsonl, line 2, is not JSON"),
        ("a.jsonl", b"[1]\n", r"a\.jsonl, line 1, is not a JSON object"),
        ("a.jsonl", b'{"text": 3}\n', r"a\.jsonl: row 1 of column 'text' holds 3, which is not text"),
        ("a.parquet", b"PAR1 and no more", r"a\.parquet is not a whole Parquet file"),
        ("a.docx", b"x", r"a\.docx has a suffix that says nothing"),
    ],
)
def test_a_broken_file_is_one_sentence(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=sentence):
        build(tmp_path / "out", {"source": str(tmp_path / name)}, min_chars=10)


# Hub and Kaggle datasets.


def test_hub_dataset_is_streamed_and_stops_early(tmp_path: Path) -> None:
    folder = tmp_path / "reviews"
    (folder / "data").mkdir(parents=True)
    features = {
        "info": {
            "features": {
                "text": {"dtype": "string", "_type": "Value"},
                "mood": {"names": ["bad", "good"], "_type": "ClassLabel"},
            }
        }
    }
    for part, start in enumerate((0, 50)):
        rows = pa.table({"text": [f"review {n}" for n in range(start, start + 50)], "mood": [n % 2 for n in range(50)]})
        rows = rows.replace_schema_metadata({"huggingface": json.dumps(features)})
        pq.write_table(rows, folder / "data" / f"train-{part:05d}-of-00002.parquet")
    meta = build(tmp_path / "out", {"source": str(folder), "label": "mood"}, documents=10)
    assert meta["read"] == meta["documents"] == 10
    assert {row["label"] for row in read.documents(tmp_path / "out")} == {"bad", "good"}
    assert meta["sources"] == [{"source": "reviews", "kind": "hub", "label": "mood"}]
    with pytest.raises(BadInput, match=r"no column 'body' .* it has text, mood"):
        build(tmp_path / "other", {"source": str(folder), "text": "body"})
    with pytest.raises(BadInput, match="could not be read"):
        build(tmp_path / "third", {"source": str(folder), "split": "nosuch"})


@pytest.mark.parametrize("head", ["a: [", "a:\n\tb: 1", "a: !!python/none 1", "- a", "dataset_info: {features: 5}"])
def test_a_dataset_whose_card_is_broken_is_one_sentence(tmp_path: Path, head: str) -> None:
    folder = tmp_path / "reviews"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"text": "a"}\n')
    (folder / "README.md").write_text(f"---\n{head}\n---\nReviews.\n")
    with pytest.raises(BadInput, match=r"^the dataset .*reviews could not be read: ") as refusal:
        build(tmp_path / "out", {"source": str(folder)})
    assert "\n" not in str(refusal.value)


def test_kaggle_file_from_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "cache"))
    handle = parse_dataset_handle("someone/things/versions/3")
    path = Path(get_cached_path(handle, "things.csv"))
    path.parent.mkdir(parents=True)
    path.write_text("text;kind\none;a\ntwo;b\n")
    Cache().mark_as_complete(handle, "things.csv")
    given = {"source": "someone/things", "file": "things.csv", "revision": "3", "label": "kind"}
    meta = build(tmp_path / "out", given, validation=0.0, test=0.0)
    assert sorted(texts(tmp_path / "out")) == ["one", "two"]
    assert meta["sources"][0]["kind"] == "kaggle" and str(tmp_path) not in json.dumps(meta)


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"source": "package:gensim-wikipedia"}, "package"),
        ({"source": "owner/name", "revision": "abc"}, "hub"),
        ({"source": "imdb", "revision": "abc"}, "hub"),
        ({"source": "hub:owner/name", "revision": "abc"}, "hub"),
        ({"source": "owner/name", "file": "a.csv", "revision": "1"}, "kaggle"),
        ({"source": "kaggle:owner/name", "file": "a.csv"}, "kaggle"),
    ],
)
def test_auto_tells_sources_apart(given: dict[str, Any], kind: str) -> None:
    assert sources.resolved(sources.Source(**given)).kind == kind


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"source": "owner/name"}, "owner/name is no file or folder here; for a hub dataset add its revision"),
        ({"source": "nosuch.csv"}, r"nosuch\.csv is missing"),
        ({"source": "./nosuch"}, r"\./nosuch is missing"),
        ({"source": "nosuch", "kind": "text"}, "nosuch is missing"),
        ({"source": "package:nosuch"}, "package:nosuch is not a known text"),
        ({"source": "owner/name", "kind": "hub"}, "pin its revision"),
        ({"source": "owner/name", "kind": "kaggle", "file": "a.csv"}, "the number of its version"),
        (
            {"source": "package:gensim-wikipedia", "separator": ","},
            "separator means nothing for package:gensim-wikipedia",
        ),
        ({"source": "a.csv", "kind": "table", "split": "x"}, r"split means nothing for a\.csv"),
        ({"source": "a.csv", "colour": "x"}, r"sources\.0\.colour is not a known key"),
        (
            {"source": "owner/name", "kind": "kaggle", "file": "a.csv", "revision": "1", "unit": "line"},
            r"unit means nothing for a\.csv of owner/name, which is a table",
        ),
        (
            {"source": "owner/name", "kind": "kaggle", "file": "a.txt.gz", "revision": "1", "label": "l"},
            r"label means nothing for a\.txt\.gz of owner/name, which is plain text",
        ),
    ],
)
def test_a_wrong_source_is_one_sentence(tmp_path: Path, given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        build(tmp_path / "out", given)


def test_a_pinned_dataset_is_not_a_folder_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder `imdb` lies here. A revision means the hub's imdb, but the package datasets would read the folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "imdb").mkdir()
    (tmp_path / "imdb" / "train.csv").write_text("text\nours\n")
    for name in ("imdb", "hub:imdb"):
        with pytest.raises(BadInput, match="imdb is a folder here, and a folder has no revision"):
            list(sources.documents(sources.resolved(sources.Source(source=name, revision="abc"))))
    local = sources.resolved(sources.Source(source="imdb"))
    assert [row.text for row in sources.documents(local)] == ["ours"]


def test_a_sum_of_splits_is_read_by_our_own_reader(tmp_path: Path) -> None:
    """pandas would turn 007 into 7."""
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text(f"id,text\n007,of {split}\n")
    source = sources.resolved(sources.Source(source=str(tmp_path), id="id", split="train+test"))
    rows = list(sources.documents(source))
    assert [(row.title, row.text) for row in rows] == [("007", "of train"), ("007", "of test")]


def test_a_table_in_a_txt_is_read_as_a_table(tmp_path: Path) -> None:
    """The kind that the user names wins over the suffix."""
    table = written(tmp_path / "data.txt", "id\ttext\tlabel\n7\tone two\tA\n8\tthree four\tB\n")
    source = sources.resolved(sources.Source(**table, kind="table", separator="\t", label="label", id="id"))
    assert [(row.text, row.label) for row in sources.documents(source)] == [("one two", "A"), ("three four", "B")]


# From documents to a corpus.


def test_same_seed_same_bytes_other_seed_other_order(tmp_path: Path, table: dict[str, Any]) -> None:
    first, again, other = (build(tmp_path / name, table, seed=s) for name, s in (("1", 0), ("2", 0), ("3", 1)))
    assert first == again and first["sha256"] != other["sha256"]
    assert texts(tmp_path / "1") == texts(tmp_path / "2") != texts(tmp_path / "3")
    assert sorted(texts(tmp_path / "1")) == sorted(texts(tmp_path / "3"))
    assert sum(texts(tmp_path / "1", split) == [] for split in read.SPLITS) == 0


def test_splits_have_their_shares_and_stratify_holds_within_labels(tmp_path: Path, table: dict[str, Any]) -> None:
    meta = build(tmp_path / "plain", table)
    assert meta["splits"] == {"train": 60, "validation": 20, "test": 20}
    build(tmp_path / "even", table, stratify=True)
    counts = Counter((row["label"], row["split"]) for row in read.documents(tmp_path / "even"))
    for label, size in {"a": 40, "b": 30, "c": 20, "d": 8}.items():
        assert counts[label, "test"] == pytest.approx(size * 0.2, abs=1)
        assert counts[label, "validation"] == pytest.approx(size * 0.2, abs=1)


def test_a_share_above_nothing_gets_a_document(tmp_path: Path) -> None:
    source = {**written(tmp_path / "a.txt", "a\nb\nc"), "unit": "line"}
    assert build(tmp_path / "out", source, validation=0.1, test=0.1)["splits"] == {
        "train": 1,
        "validation": 1,
        "test": 1,
    }
    with pytest.raises(BadInput, match="2 documents are too few"):
        build(tmp_path / "two", source, documents=2)


def test_balance(tmp_path: Path, table: dict[str, Any]) -> None:
    def labels(name: str, **changes: Any) -> Counter[str]:
        build(tmp_path / name, table, **changes)
        return Counter(row["label"] for row in read.documents(tmp_path / name))

    assert labels("20", balance=20) == {"a": 20, "b": 20, "c": 20}
    assert labels("smallest", balance="smallest") == dict.fromkeys("abcde", 2)
    assert labels("bounded", balance=20, documents=17) == {"a": 5, "b": 5, "c": 5}
    with pytest.raises(BadInput, match="asks for 50 documents a label; the largest, a, has 40"):
        build(tmp_path / "too many", table, balance=50)
    with pytest.raises(BadInput, match="documents is 2, but balance has to keep some of each of 5 labels"):
        build(tmp_path / "too few", table, balance="smallest", documents=2)
    with pytest.raises(BadInput, match="balance needs a label on every document; 100 of 100 have none"):
        build(tmp_path / "none", {"source": table["source"]}, balance=5)


def test_lengths_and_what_was_dropped(tmp_path: Path) -> None:
    source = {
        **written(
            tmp_path / "a.jsonl", "".join(json.dumps({"text": t}) + "\n" for t in ["", "no", "a fine text \ud800"])
        )
    }
    meta = build(tmp_path / "out", source, min_chars=3, max_chars=7, validation=0.0, test=0.0)
    assert texts(tmp_path / "out") == ["a fine"]
    assert meta["dropped"] == {"empty": 1, "short": 1, "near_duplicate": 0, "balance": 0}
    with pytest.raises(BadInput, match="corpus is empty: 3 documents were read; 1 held no text; 2 were shorter"):
        build(tmp_path / "none", source, min_chars=100)


def test_sources_take_turns(tmp_path: Path) -> None:
    many = {**written(tmp_path / "many.txt", "\n".join(f"m{n}" for n in range(50))), "unit": "line"}
    few = {**written(tmp_path / "few.txt", "f0\nf1"), "unit": "line"}
    build(tmp_path / "out", many, few, documents=6)
    assert sorted(texts(tmp_path / "out")) == ["f0", "f1", "m0", "m1", "m2", "m3"]
    build(tmp_path / "bounded", {**many, "documents": 3}, few)
    assert sorted(texts(tmp_path / "bounded")) == ["f0", "f1", "m0", "m1", "m2"]


def test_near_duplicates_are_exactly_those_above_the_threshold() -> None:
    random = np.random.default_rng(0)
    words = [f"w{n}" for n in range(500)]
    documents = [list(random.choice(words, 120)) for _ in range(60)]
    for original in documents[:60]:  # copies, some nearer than others
        copy = list(original)
        for changed in random.choice(120, random.integers(0, 8), replace=False):
            copy[changed] = "changed"
        documents.append(copy)
    pool = NearDuplicates(0.8)
    kept: list[Any] = []
    for words_of in documents:
        mine = shingle(" ".join(words_of))
        expected = any(jaccard(mine, other) >= 0.8 for other in kept)
        assert pool.seen(" ".join(words_of)) == expected
        if not expected:
            kept.append(mine)
    assert 60 < len(kept) < 110
    assert jaccard(shingle("a b c d e f"), shingle("a b c d e g")) == pytest.approx(1 / 3)
    assert NearDuplicates(1.0).seen("short") is False


@pytest.mark.parametrize(
    "texts",
    [
        ["\U0001f600", "\U0001f622\U0001f622", "\u2764\ufe0f", "\U0001f44d", "\U0001f44d\U0001f3fd", "\u2728\u2728"],
        ["+-*/", "=> {};", "???", "!!!", "...", "\u2200\u2203\u2286", "<= 3", ">= 3", ":)", ":("],
        ["C", "C++", "C#", "5 $", "5 %", "5 \u20ac", "a & b", "a @ b", "a / b"],
        ["\u0926\u093f\u0928", "\u0926\u093e\u0928", "\u0926\u0940\u0928", "\u0926\u0928"],  # Hindi, vowel signs
        ["\u0e01\u0e34\u0e19\u0e02\u0e49\u0e32\u0e27", "\u0e01\u0e34\u0e19\u0e02\u0e48\u0e32\u0e27"],  # Thai, tones
        ["\u0e81\u0eb4\u0e99", "\u0e81\u0eb5\u0e99"],  # Lao
        ["\u1780\u17b7", "\u1780\u17b8"],  # Khmer
        ["\u05e9\u05c1", "\u05e9\u05c2"],  # Hebrew, shin and sin
        ["ma", "m\u00e1", "m\u00e0", "m\u01ce"],  # Pinyin
        ["x\u00b2", "x\u00b3", "x2"],
        ["\u6211\u4eec", "\u4f60\u4eec"],
        ["yes", "no", "yes no", "no yes", "yes yes"],
    ],
)
def test_what_differs_is_no_near_duplicate(texts: list[str]) -> None:
    pool = NearDuplicates(0.8)
    assert [text for text in texts if pool.seen(text)] == []
    assert all(pool.seen(text) for text in texts)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("caf\u00e9", "cafe\u0301"),  # one character, or a letter and its accent
        ("A  b\nc.", "a b c"),
        ("???", " ??? "),
        ("\u6211\u4eec\u53bb\u5317\u4eac\u3002" * 9, "\u6211\u4eec\u53bb\u5317\u4eac\uff0c" * 9),
    ],
)
def test_what_is_the_same_is_one(one: str, other: str) -> None:
    pool = NearDuplicates(0.8)
    assert not pool.seen(one) and pool.seen(other)


def test_a_text_without_spaces_is_compared_letter_by_letter() -> None:
    """100 letters, one of them another: 91 of 101 runs of five are in both."""
    text = "".join(chr(0x4E00 + 7 * number) for number in range(100))
    other = text[:50] + "\u9f98" + text[51:]
    assert jaccard(shingle(text), shingle(other)) == pytest.approx(91 / 101)


def test_near_duplicates_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = {**written(tmp_path / "a.txt", "one two three\nOne, two three!\nfour five"), "unit": "line"}
    meta = build(tmp_path / "out", source, near_duplicates=0.9, validation=0.0, test=0.0)
    assert sorted(texts(tmp_path / "out")) == ["four five", "one two three"] and meta["dropped"]["near_duplicate"] == 1
    said = capsys.readouterr().err
    assert "1 of 3 documents are left out" in said and "near_duplicates: null keeps them" in said


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"validation": 0.5, "test": 0.5}, "leave nothing to train on"),
        ({"min_chars": 10, "max_chars": 5}, "max_chars 5 is less than min_chars 10"),
        ({"near_duplicates": 1.5}, "near_duplicates is 1.5"),
        ({"documents": 0}, "documents is 0"),
        ({"balance": 0}, "balance 0 keeps nothing"),
        ({"colour": 1}, "colour is not a known key"),
    ],
)
def test_wrong_params_are_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInput, match=re.escape(sentence)):
        knobs({"source": "package:gensim-wikipedia"}, **changes)


def bring_texts(folder: Path, monkeypatch: pytest.MonkeyPatch, **interpret: Any) -> dict[str, Any]:
    """What meta.json says of the texts that params.yaml's interpret, with these changes, asks for."""
    values = params.read(ROOT / "params.yaml")
    (folder / "params.yaml").write_text(json.dumps({**values, "interpret": {**values["interpret"], **interpret}}))
    monkeypatch.chdir(folder)
    fetch_texts.main("texts")
    return json.loads(Path("texts/meta.json").read_text())


def test_texts_are_fetched_like_the_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = written(tmp_path / "questions.csv", "question\nWhy is the sky blue?\nWhy is the sky blue?\nWho are you?\n")
    asked = {"sources": [{**source, "text": "question"}], "min_chars": 0}
    found = bring_texts(tmp_path, monkeypatch, texts=asked)
    assert found["documents"] == 2, "near-duplicates are dropped, as fetch.corpus says"
    assert sorted(texts(tmp_path / "texts")) == ["Who are you?", "Why is the sky blue?"]
    assert bring_texts(tmp_path, monkeypatch, texts=asked, run=False) == {"skipped": True}
    assert bring_texts(tmp_path, monkeypatch, texts=None) == {"skipped": True}


@pytest.mark.parametrize(
    "asked, sentence",
    [
        ({"min_chars": 0}, "interpret.texts lacks sources; for the training text write null"),
        ("questions.csv", "interpret.texts is 'questions.csv', but"),
        (
            {"sources": [{"source": "q.csv"}], "colour": 1},
            "texts over fetch.corpus.colour is not a known key",
        ),
        ({"sources": [{"source": "q.csv"}]}, "q.csv is missing; params.yaml names it as a source"),
    ],
)
def test_wrong_texts_are_one_sentence(
    asked: Any, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInput, match=re.escape(sentence)):
        bring_texts(tmp_path, monkeypatch, texts=asked)
    assert not (tmp_path / "texts").exists()


def test_a_failure_leaves_earlier_results_alone(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "meta.json").write_text("earlier")
    with pytest.raises(BadInput), place.whole_folder(tmp_path / "corpus") as folder:
        (folder / "half").write_text("x")
        raise BadInput("no")
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]
    assert (tmp_path / "corpus" / "meta.json").read_text() == "earlier"


def test_what_killed_fetches_left_is_removed_and_what_runs_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from strata.corpus.place import whole_folder
with whole_folder(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("x")
    print(folder, flush=True)
    sys.stdin.read()
"""
    for ends in (True, False):
        command = [sys.executable, "-c", code, str(tmp_path / "corpus")]
        other = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert other.stdout
        left = Path(other.stdout.readline().strip())
        if ends:
            other.kill()
            other.wait()
        (tmp_path / ".corpus").mkdir(exist_ok=True)  # somebody else's
        with place.whole_folder(tmp_path / "corpus") as folder:
            assert left.exists() != ends and folder != left
        said = capsys.readouterr().err
        assert (said == f"fetch: {left} was left by one that was killed, and is removed\n") == ends
        other.communicate("")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".corpus", "corpus"]


def test_reader_refuses_a_truncated_or_missing_corpus(tmp_path: Path, table: dict[str, Any]) -> None:
    build(tmp_path / "out", table)
    path = tmp_path / "out" / "corpus.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BadInput, match=r"corpus\.parquet does not have the hash that was noted .* fetch_corpus again"):
        texts(tmp_path / "out")
    path.unlink()
    with pytest.raises(BadInput, match=r"corpus\.parquet is missing"):
        texts(tmp_path / "out")


def test_reader_names_a_damaged_corpus(tmp_path: Path) -> None:
    """A byte where the packed page begins, whoever opens the file."""
    folder = tmp_path / "out"
    build(folder, {**written(tmp_path / "a.txt", "one text " * 400 + "\n" + "more " * 900), "unit": "line"}, test=0.0)
    path = folder / "corpus.parquet"
    whole = path.read_bytes()
    readers = {
        "text": lambda: texts(folder),
        "title": lambda: read.titles(folder),
        "document": lambda: read.Texts(folder).of([0]),
    }
    for reader in readers.values():
        reader()
    magic = b"\x28\xb5\x2f\xfd"  # of zstd, before each page
    path.write_bytes(whole.replace(magic, b"\xd7" + magic[1:]))
    for reader in readers.values():
        with pytest.raises(BadInput, match=r"corpus\.parquet (is not a whole Parquet file|does not have the hash)"):
            reader()


def test_reader_imports_nothing_heavy() -> None:
    code = "import sys, strata.corpus.read; print({'transformers', 'datasets', 'mwparserfromhell'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.strip() == "set()"
