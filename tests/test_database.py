"""Databases as sources: the file that was named is read, the query runs to the letter, and nothing is written."""

import sqlite3
from pathlib import Path

import pytest

from strata.corpus import database
from strata.run.door import BadInput


def made(path: Path, tag: str = "mine") -> Path:
    """A database of two rows whose text holds ``tag``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE items (id INTEGER, body TEXT)")
        connection.executemany("INSERT INTO items VALUES (?, ?)", [(1, f"{tag} :x 100%"), (2, tag)])
    connection.close()
    return path


def bodies(place: str | Path, query: str = "SELECT id, body FROM items ORDER BY id") -> list[str]:
    return [row["body"] for row in database.rows(place, query, "items")]


@pytest.mark.parametrize(
    ("name", "beside"),
    [
        ("notes#2024.sqlite", "notes"),
        ("team %41/x.sqlite", "team A/x.sqlite"),
        ("q?mode=rw.sqlite", "q"),
        ("%23.db", "#.db"),
        ("a%00b.db", "a"),
        ("two words & more;+.db", "two"),
        ("été/日本.db", "ete/x.db"),
        ("file:other.db", "other.db"),
        ("[a-z]*.db", "a.db"),
        ("c:\\d.db", "d.db"),
        ("'quoted\".db", "quoted.db"),
    ],
)
def test_the_file_that_is_named_is_read(tmp_path: Path, name: str, beside: str) -> None:
    made(tmp_path / beside, "other")
    path = made(tmp_path / name)
    before = sorted(tmp_path.rglob("*"))
    assert bodies(path)[1] == "mine"
    if not set("?%") & set(name):  # which mean something in a URL
        assert bodies(f"sqlite:///{path}")[1] == "mine"
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("where", "count"),
    [
        ("WHERE body LIKE '%:x%'", 1),
        ("WHERE body LIKE '%100%%'", 1),
        ("WHERE body <> ':x' -- see :all, ?, %s and %(name)s", 2),
        ("/* :x */ WHERE body <> '?'", 2),
        ("WHERE body = 'mine';", 1),
        ("WHERE body <> '{0}'", 2),
    ],
)
def test_a_query_runs_to_the_letter(tmp_path: Path, where: str, count: int) -> None:
    assert len(bodies(made(tmp_path / "a.db"), f"SELECT id, body FROM items {where}")) == count


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("ATTACH DATABASE 'new.db' AS z", "attach, make and load nothing"),
        ("ATTACH DATABASE 'file:new.db?mode=rwc' AS z", "attach, make and load nothing"),
        ("VACUUM INTO 'new.db'", "attach, make and load nothing"),
        ("DELETE FROM items", "readonly database"),
        ("DELETE FROM items RETURNING id, body", "readonly database"),
        ("UPDATE items SET body = ''", "readonly database"),
        ("DROP TABLE items", "readonly database"),
        ("CREATE TABLE more (id)", "readonly database"),
        ("PRAGMA user_version = 7", "readonly database"),
        ("REINDEX", "returns no rows"),
        ("SELECT load_extension('x') AS body", "attach, make and load nothing"),
        ("SELECT 1 AS body; DELETE FROM items", "one statement at a time"),
        ("SELECT id, body FROM items WHERE id = :id", "binding"),
        ("SELECT id, id AS body, body FROM items", "two columns called 'body'"),
        ("", "returns no rows; give a SELECT"),
        ("-- nothing", "returns no rows; give a SELECT"),
        ("SELECT '\0' AS body", r"character 9 of the query is '\\x00'"),
        ("SELECT '\ud800' AS body", r"character 9 of the query is '\\ud800'"),
        ("SELECT CAST(x'ff' AS TEXT) AS body", "UTF-8"),
    ],
)
def test_a_query_that_does_more_than_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, query: str, why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = made(tmp_path / "a.db")
    before = path.read_bytes()
    with pytest.raises(BadInput, match=why):
        bodies(path, query)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["a.db"]


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("sqlite:///absent.db", "unable to open absent.db, which is no file"),
        ("sqlite:///.", "which is no file"),
        ("sqlite:///file:absent.db?uri=true", "unable to open"),
        ("sqlite:///a.db?timeout=3", "SQLite knows no timeout"),
        ("nosuch://user@host/db", "cannot be opened"),
        ("postgresql://host:port/db", "cannot be opened"),
        ("no url", "cannot be opened"),
    ],
)
def test_a_url_that_leads_nowhere_makes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    made(tmp_path / "a.db")
    with pytest.raises(BadInput, match=why):
        bodies(url)
    assert [file.name for file in tmp_path.iterdir()] == ["a.db"]


def test_tables_that_are_virtual_can_be_read(tmp_path: Path) -> None:
    """A full-text index, JSON and a view need more of SQLite than SELECT."""
    path = made(tmp_path / "a.db")
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE VIRTUAL TABLE words USING fts5(body)")
        connection.execute("INSERT INTO words VALUES ('hello world')")
        connection.execute("CREATE VIEW seen AS SELECT body FROM items WHERE id = 2")
    connection.close()
    assert bodies(path, "SELECT body FROM words WHERE words MATCH 'hello'") == ["hello world"]
    assert bodies(path, "SELECT value AS body FROM json_each('[1, 2]')") == [1, 2]
    assert bodies(path, "SELECT * FROM seen") == ["mine"]
    assert bodies("sqlite://", "SELECT 'none' AS body") == ["none"]
