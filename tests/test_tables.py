"""Files of rows and lines: read as they stand, or refused with the line; nothing is regrouped, and nothing is read
whole before its size is known."""

import bz2
import gzip
import json
import lzma
import sqlite3
import tracemalloc
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from strata.corpus import lines, mediawiki, sources
from strata.corpus.document import Document
from strata.corpus.values import missing, text, word
from strata.run.door import BadInput


def documents(path: Path, content: str | bytes, **source: Any) -> list[Document]:
    """What is read of a file with ``content``."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(sources.documents(sources.resolved(sources.Source(source=str(path), **source))))


# --- one meaning of a value -------------------------------------------------------------------------------------------

NOTHING = [None, float("nan"), np.float32("nan"), Decimal("NaN"), np.datetime64("NaT"), pd.NaT, pd.NA, "", " \t\n", b""]


@pytest.mark.parametrize("value", [*NOTHING, b"  ", np.str_(""), np.bytes_(b""), memoryview(b"")])
def test_what_is_missing(value: Any) -> None:
    assert missing(value) and word(value) is None and text(value) == ""


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *[(one, "1") for one in (1, 1.0, np.float32(1), np.int8(1), Decimal("1"), Decimal("1.00"), "1", b"1", " 1 ")],
        ("1.0", "1.0"),  # of a text file: as it is written
        (0, "0"), (-0.0, "0"), (False, "False"), (np.bool_(True), "True"), (Decimal("1.50"), "1.5"), (-1, "-1"),
        (float("inf"), "inf"), (b"pos", "pos"), ("grün".encode(), "grün"), (memoryview(b"pos"), "pos"),
        ("nan", "nan"), ("NA", "NA"), ("None", "None"),  # Namibia, and names, are not nothing
        ("a\ud800", "a\ufffd"), (pd.Timestamp("2024-01-01"), "2024-01-01 00:00:00"),
    ],
)  # fmt: skip
def test_a_word(value: Any, expected: str) -> None:
    assert not missing(value) and word(value) == expected


@pytest.mark.parametrize(
    ("read", "value", "why"),
    [
        (word, [1], "a list, which is not one value"),
        (word, {"a": 1}, "a dict, which is not one value"),
        (word, np.array([1, 2]), "a ndarray, which is not one value"),
        (word, b"\xff\xfe", "the bytes b'.xff.xfe', which are not UTF-8"),
        (text, "über".encode("latin-1"), "which are not UTF-8"),
        (text, 3, "3, which is not text"),
        (text, ["a"], "a list, which is not text"),
    ],
)
def test_no_word_and_no_text(read: Any, value: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read(value)


def test_every_source_reads_the_same_values(tmp_path: Path) -> None:
    """Labels: a number, none, a number; ids: a word, blank, a word."""
    table = pd.DataFrame({"text": ["a", "b", "c"], "label": [1.0, None, 2.0], "id": ["x", " ", "y"]})
    table.to_parquet(tmp_path / "a.parquet")
    table.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    names = {name: table[name].to_numpy(object).astype("S") for name in ("text", "id")}
    np.savez(tmp_path / "a.npz", vectors=np.ones((3, 2)), label=table["label"], **names)
    with sqlite3.connect(tmp_path / "a.db") as connection:
        table.assign(vector="[1, 1]").to_sql("items", connection)
    connection.close()
    for name, more in {
        "a.parquet": {},
        "a.jsonl": {},
        "a.npz": {"text": "text"},
        "a.db": {"text": "text", "query": "SELECT * FROM items"},
    }.items():
        source = sources.Source(source=str(tmp_path / name), label="label", id="id", **more)
        found = [(one.text, one.label, one.id) for one in sources.documents(sources.resolved(source))]
        assert found == [("a", "1", "x"), ("b", None, None), ("c", "2", "y")], name


# --- values between separators ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("a.csv", "\n \r\n\nid,text\n1,hello\n\n2,you\n\n", ["hello", "you"]),
        ("a.csv", "id,text\r1,hello\r2,you\r", ["hello", "you"]),  # ends of lines of old Macs
        ("a.csv", 'id,text\n1,"two\nlines, and ""more"""\n2,6" wide\n', ['two\nlines, and "more"', '6" wide']),
        ("a.csv", "text\nHello, world; and all\nno\n", ["Hello, world; and all", "no"]),  # one column has no separator
        ("a.csv", 'text\n"Hello, ""world"""\n', ['Hello, "world"']),
        ("a.csv", "id,text,,\n1,hello,,\n", ["hello"]),
        ("a.csv", "id;text\n1;a,b,c,d\n", ["a,b,c,d"]),
        ("a.csv", "\ufeffid,text\n1,hello\n", ["hello"]),
        ("a.csv", "id,text\n1,grün\n".encode("utf-16"), ["grün"]),
        ("a.csv", "\ufeffid,text\n1,grün\n".encode("utf-16-be"), ["grün"]),
        ("a.csv", "id,text\n1,grün\n".encode("utf-32"), ["grün"]),
        ("a.txt", "eins\n\nzwei".encode("utf-16"), ["eins\n", "zwei"]),
        ("a.tsv", 'id\ttext\n1\t"Is it?\n2\t6" wide\n3\t"Yes" she said\n', ['"Is it?', '6" wide', '"Yes" she said']),
        ("a.tsv", 'id\ttext\n1\t"one, ""two"""\n2\t""\n3\t"\n', ['one, "two"', "", '"']),
        ("a.tsv", 'id\ttext\n1\t"two\nlines"\n2\t"a\ttab"\n3\tend\n', ["two\nlines", "a\ttab", "end"]),
        ("a.tsv", '\n\nid\ttext\n1\t""""\n', ['"']),
        ("a.csv", 'id\ttext\n1\t"Is it?\n2\tyes\n', ['"Is it?', "yes"]),  # found out to be a TSV
    ],
)
def test_rows_as_they_stand(tmp_path: Path, name: str, content: str | bytes, texts: list[str]) -> None:
    assert [one.text for one in documents(tmp_path / name, content)] == texts


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.csv", "id,text\n1,The end\n2,Hello, world, and all\n", "line 3, has 4 values, but line 1 has 2 names"),
        ("a.csv", "id,text\n1,hello\n2\n", "line 3, has 1 value, but line 1 has 2 names"),
        ("a.csv", 'id,text\n1,"two\nlines"\n2,a,b\n', "line 4, has 3 values"),
        ("a.csv", "\n\nid,text\n1,a,b\n", "line 4, has 3 values, but line 3 has 2 names"),
        ("a.csv", 'id,text\n1,"open\n2,second\n3,third\n', "line 2, is not CSV: unexpected end of data, by line 4"),
        ("a.csv", 'id,text\n1,a\n2,"open\n3,"b"\n4,c\n', "line 3, is not CSV: ',' expected after '\"', by line 4"),
        ("a.csv", 'id,text\n1,"she said "no" to it"\n', "line 2, is not CSV"),
        ("a.csv", 'id,text\n1,"she said \\"no\\""\n', "line 2, is not CSV"),
        ("a.csv", 'id,"text\n1,a\n', "line 1, is not CSV"),
        ("a.csv", "id,text,text\n1,a,b\n", "has 2 columns 'text'"),
        ("a.csv", "\n\n", "is empty"),
        ("a.csv", '[{"text": "one"}]', "is JSON, not CSV"),
        ("a.csv", '{"text": "one"}\n{"text": "two"}', "is JSON, not CSV"),
        ("a.csv", "id,text\n1,a\x00b\n", "line 2, holds the character NUL"),
        ("a.csv", "id,text\n1,a\n".encode("utf-16-le"), "line 1, holds the character NUL: .*UTF-16"),
        ("a.csv", "id,text\n1,a\n2,grün\n".encode("latin-1"), r"is not UTF-8 text: .* in line 3"),
        ("a.csv", b"\xff\xfei", "is not UTF-16 text: truncated data in line 1"),
        ("a.csv", "".join(f"x{n},y{n}," for n in range(50)) + "z\n", r"it has x0, .* … \(101 in all\)"),
        ("a.tsv", "id\ttext\n1\ta\tb\n", "line 2, has 3 values, but line 1 has 2 names"),
        ("a.tsv", 'id\ttext\n1\t"open\ttab\n2\tb\n', "line 2, is not CSV"),
        ("a.tsv", 'id\ttext\n1\t"two\nlines" more\n', "line 2, is not CSV"),
        ("a.tsv", "id\ttext\n1\ttwo\nlines\n", "line 3, has 1 value"),
        ("a.txt", b"\xe9t\xe9\n", "is not UTF-8 text: invalid continuation byte in line 1"),
        ("a.txt", b"one\n" * 5000 + b"\xff", "is not UTF-8 text: invalid start byte in line 5001"),
        ("a.json", '[\n{"text": "one"}\n]', r"line 1, is not JSON: .*each line holds a whole object"),
        ("a.json", '[{"text": "one"}]', r"line 1, is not a JSON object .* as `jq -c '.\[\]'`"),
        ("a.jsonl", "", "is empty"),
        ("a.jsonl", '{"text": "one", "text": "two"}', "line 1, is not JSON: the key 'text' stands twice"),
        ("a.jsonl", '{"text": "a"}\n{"text": "b"} {"text": "c"}', "line 2, is not JSON: Extra data"),
        ("a.jsonl", "[" * 100_000 + "]" * 100_000, "line 1, is nested too deep"),
        ("a.jsonl", '{"text": "a", "x": ' + '{"a":' * 100_000, "line 1, is nested too deep"),
        ("a.jsonl", '{"body": "a"}\n{"body": "b", "more": 1}\n', "no column 'text' .* it has body, more"),
        ("a.jsonl", '{"text": ["a", "b"]}\n', "row 1 of column 'text' holds a list, which is not text"),
        ("a.jsonl", '{"text": "a", "n": ' + "9" * 5000 + "}", "line 1, is not JSON: Exceeds the limit"),
        ("a.csv.gz", gzip.compress(b"id,text\n1,a\n" * 999, mtime=0)[:-20], "cannot be read after line"),
        ("a.csv.bz2", bz2.compress(b"id,text\n")[:-9], "cannot be read after line"),
        ("a.csv.xz", lzma.compress(b"id,text\n1,a\n" * 99)[:-20], "cannot be read after line"),
        ("a.csv.xz", b"id,text\n", "cannot be read after line 0"),
        ("a.csv.zst", b"id,text\n", "cannot be read after line 0"),
    ],
)  # fmt: skip
def test_rows_that_are_refused_with_their_line(tmp_path: Path, name: str, content: str | bytes, why: str) -> None:
    with pytest.raises(BadInput, match=why) as refused:
        documents(tmp_path / name, content)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 600


@pytest.mark.parametrize(
    "pack", [bz2.compress, gzip.compress, lzma.compress, lambda b: pa.compress(b, "zstd", asbytes=True)]
)
def test_packed_tables(tmp_path: Path, pack: Any) -> None:
    suffix = {bz2.compress: ".bz2", gzip.compress: ".gz", lzma.compress: ".xz"}.get(pack, ".zst")
    found = documents(tmp_path / f"a.csv{suffix}", pack(b"id,text\n" + b"1,hello\n" * 5000))
    assert len(found) == 5000 and found[0].text == "hello"


def test_a_key_may_come_late(tmp_path: Path) -> None:
    rows = [{"text": f"t{n}"} for n in range(3000)] + [{"text": "last", "label": "b"}]
    found = documents(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows), label="label")
    assert [one.label for one in found[-2:]] == [None, "b"] and len(found) == 3001
    with pytest.raises(BadInput, match=r"no column 'lable' .* it has text, label"):
        documents(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows), label="lable", documents=5)


# --- Parquet and classes ----------------------------------------------------------------------------------------------


def test_classes_have_their_names_and_minus_one_is_none(tmp_path: Path) -> None:
    """In a file of the package datasets, read as a folder of the hub and as a table."""
    features = {"text": {"_type": "Value"}, "label": {"names": ["bad", "good"], "_type": "ClassLabel"}}
    rows = pa.table({"text": ["a", "b", "c", "d"], "label": pa.array([1, None, -1, 0], pa.int64())})
    path = tmp_path / "hub" / "train.parquet"
    path.parent.mkdir()
    noted = {
        "huggingface": json.dumps({"info": {"features": {**features, "text": {"dtype": "string", "_type": "Value"}}}})
    }
    pq.write_table(rows.replace_schema_metadata(noted), path)
    for place in (path.parent, path):
        source = sources.Source(source=str(place), label="label")
        found = {one.text: one.label for one in sources.documents(sources.resolved(source))}
        assert found == {"a": "good", "b": None, "c": None, "d": "bad"}
    pq.write_table(rows, path)
    bare = documents(path, path.read_bytes(), label="label")
    assert [one.label for one in bare] == ["1", None, "-1", "0"], "where no classes are noted, it is a number"


LISTED = {"label": {"names": ["bad", "good"], "_type": "ClassLabel"}, "tags": [{"dtype": "string", "_type": "Value"}]}


@pytest.mark.parametrize(
    ("noted", "labels"),
    [
        (json.dumps({"info": {"features": LISTED}}), ["good", "bad"]),
        *[
            (json.dumps(value), ["1", "0"])
            for value in (
                *([], "x", None, {"info": None}, {"info": {"features": [1]}}),
                {"info": {"features": {"label": {"_type": "ClassLabel"}}}},
            )
        ],
        *[(text, ["1", "0"]) for text in ("", "{", "[" * 100_000, b"\xff")],
    ],
    ids=lambda value: str(value)[:30],
)
def test_metadata_of_another_form_names_no_classes(tmp_path: Path, noted: str | bytes, labels: list[str]) -> None:
    path, rows = tmp_path / "a.parquet", pa.table({"text": ["a", "b"], "label": pa.array([1, 0], pa.int64())})
    pq.write_table(rows.replace_schema_metadata({"huggingface": noted}), path)
    assert [one.label for one in documents(path, path.read_bytes(), label="label")] == labels


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"text": pa.array([b"a", None]), "label": pa.array([b"x", b""])}, [("a", "x"), ("", None)]),
        ({"text": pa.array(["a", None], "large_string"), "label": pa.array([True, None])}, [("a", "True"), ("", None)]),
        ({"text": ["a", "b"], "label": pa.array(["x", "y"]).dictionary_encode()}, [("a", "x"), ("b", "y")]),
        ({"text": ["a", "b"], "label": pa.array([1, None], pa.float16())}, [("a", "1"), ("b", None)]),
        ({"text": ["a", "b"], "label": pa.array([Decimal("1.00"), Decimal("2.50")])}, [("a", "1"), ("b", "2.5")]),
        ({"text": [b"\xff", b"b"], "label": ["x", "y"]}, "row 1 of column 'text' holds the bytes"),
        ({"text": ["a", "b"], "label": [["x"], ["y"]]}, "row 1 of column 'label' holds a list, which is not one value"),
        ({"text": [1, 2], "label": ["x", "y"]}, "row 1 of column 'text' holds 1, which is not text"),
    ],
)  # fmt: skip
def test_columns_of_parquet(tmp_path: Path, columns: Any, expected: Any) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), path)
    rows = sources.documents(sources.resolved(sources.Source(source=str(path), label="label")))
    if isinstance(expected, list):
        assert [(one.text, one.label) for one in rows] == expected
    else:
        with pytest.raises(BadInput, match=expected):
            list(rows)


def test_parquet_whose_text_is_no_utf8_and_a_flipped_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    bad = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(np.array([0, 1], "<i4").tobytes()), pa.py_buffer(b"\xff")]
    )
    pq.write_table(pa.table({"text": bad}), path)
    with pytest.raises(BadInput, match="holds text that is not UTF-8"):
        documents(path, path.read_bytes())
    pq.write_table(pa.table({"text": ["some text " * 50]}), path, compression="zstd")
    whole = bytearray(path.read_bytes())
    whole[whole.index(b"\x28\xb5\x2f\xfd")] ^= 0xFF  # where the packed page begins
    with pytest.raises(BadInput, match="is not a whole Parquet file"):
        documents(path, bytes(whole))


@pytest.mark.parametrize("name", ["data [v1]*", "q?#%41", "two words"])
def test_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    """Some characters are patterns to the package datasets."""
    path = tmp_path / name / "train.parquet"
    path.parent.mkdir()
    pq.write_table(pa.table({"text": ["a", "b"]}), path)
    found = sources.documents(sources.resolved(sources.Source(source=str(path.parent))))
    assert [one.text for one in found] == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("id,text,label\n007,hello,NA\n8,None,1.0\n", [("007", "hello", "NA"), ("8", "None", "1.0")]),
        ("id,text,label\n1,a,b,c\n2,a,b,c\n", "line 2, has 4 values, but line 1 has 3 names"),  # pandas: 1 is an index
        ("id,text,label\n1,a\n", "line 2, has 2 values, but line 1 has 3 names"),
        ('id,text,label\n1,"a,b\n', "line 2, is not CSV"),
        ("id,text,text,label\n", "2 columns 'text'"),
    ],
)
def test_a_csv_in_a_folder_is_read_as_one_by_itself(tmp_path: Path, content: str, expected: Any) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.csv").write_text(content)
    source = sources.Source(source=str(tmp_path / "data"), id="id", label="label")
    if isinstance(expected, list):
        found = sources.documents(sources.resolved(source))
        assert [(one.id, one.text, one.label) for one in found] == expected
    else:
        with pytest.raises(BadInput, match=expected):
            list(sources.documents(sources.resolved(source)))


# --- what unpacks without end -----------------------------------------------------------------------------------------


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> int:
    """A limit that is reached in no time."""
    for module in (lines, sources.tables, mediawiki):
        monkeypatch.setattr(module, "LONGEST", 2**16)
    return 2**16


DEEP = b"<mediawiki>" + b"<a>" * 100


@pytest.mark.parametrize(
    ("name", "content", "source", "why"),
    [
        ("a.csv.gz", gzip.compress(b"text\n" + b"a" * 2**26, mtime=0), {}, "line 2, has more than 65,536 characters"),
        ("a.txt.bz2", bz2.compress(b"a" * 2**26), {"kind": "text"}, "line 1, has more than 65,536 characters"),
        ("a.jsonl.xz", lzma.compress(b'{"text": "' + b"a" * 2**26), {}, "line 1, has more than"),
        ("a.jsonl.zst", pa.compress(b" " * 2**26, "zstd", asbytes=True), {}, "line 1, has more than"),
        ("a.csv", b'text\n"' + b"a\n" * 2**16, {}, "line 2, is not CSV: field larger than field limit"),
        ("a.txt", b"a\n" * 2**16, {}, "a paragraph has more than 65,536 characters"),
        ("a.txt", b"a\n\n" * 2**16, {"unit": "file"}, "a file has more than"),
        ("a.xml.bz2", bz2.compress(b"<mediawiki><page><text>" + b"a" * 2**26), {}, "without the end of a revision"),
        ("a.xml", b"<mediawiki><page title='" + b"a" * 2**19, {}, "without the end of a revision"),
        ("a.xml", b"<mediawiki>" + b"<page/><x/>" * 4 + b"<x/>" * 2**17, {}, "without the end of a revision"),
        ("a.xml", DEEP, {}, "50 elements stand one in the other"),
        ("a.xml", b"", {}, "is not a whole MediaWiki XML dump"),
    ],
)  # fmt: skip
def test_what_is_too_long_is_refused_before_it_is_in_memory(
    tmp_path: Path, small_limit: int, name: str, content: bytes, source: dict[str, Any], why: str
) -> None:
    (tmp_path / name).write_bytes(content)
    del content
    tracemalloc.start()
    try:
        with pytest.raises(BadInput, match=why) as refused:
            list(sources.documents(sources.resolved(sources.Source(source=str(tmp_path / name), **source))))
        assert tracemalloc.get_traced_memory()[1] < 2**24, "of the 2**26 bytes that some unpack to"
    finally:
        tracemalloc.stop()
    assert name in str(refused.value)


def test_the_history_of_a_page_is_forgotten(tmp_path: Path, small_limit: int) -> None:
    """A thousand revisions, together longer than the limit: the last one counts."""
    revisions = "".join(f"<revision><text>{n} {'a ' * 500}</text></revision>" for n in range(1000))
    dump = f"<mediawiki><page><title>T</title><ns>0</ns>{revisions}</page></mediawiki>"
    assert [one.text[:4] for one in documents(tmp_path / "a.xml", dump)] == ["999 "]


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("a" * 5000, "cannot be looked for as a file: File name too long"),
        ("/tmp/" + "b" * 300 + ".csv", "File name too long"),
        ("a\0b.csv", "cannot be looked for as a file: it holds the character NUL"),
        ("~nobody-of-this-name/a.csv", "a.csv is missing|home directory"),
    ],
)
def test_names_that_no_file_can_have(source: str, why: str) -> None:
    with pytest.raises(BadInput, match=why) as refused:
        sources.resolved(sources.Source(source=source))
    assert len(str(refused.value)) < 300
