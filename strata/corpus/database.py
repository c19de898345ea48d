"""Rows of a database by query, streamed: only a buffer of them is in memory, and the query cannot write."""

import os
import re
import sqlite3
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from strata.run.door import BadInput

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, Engine

SUFFIXES = {".sqlite", ".sqlite3", ".db"}
BUFFER = 1024  # rows that the driver fetches at a time
VARIABLE = "env:"  # and the name of the environment variable that holds the URL: params.yaml is no place for passwords

# Functions of PostgreSQL that are volatile (their value changes from call to call) and yet do nothing but answer.
ANSWERING = {
    *("random", "random_normal", "setseed", "normal_rand", "clock_timestamp", "timeofday", "gen_random_uuid"),
    *("gen_random_bytes", "uuid_generate_v1", "uuid_generate_v1mc", "uuid_generate_v4", "uuidv4", "uuidv7"),
    *("currval", "lastval", "lo_get", "ts_stat", "ts_rewrite", "pg_sleep", "array_shuffle", "array_sample"),
    *("pg_relation_size", "pg_table_size", "pg_total_relation_size", "pg_indexes_size", "pg_database_size"),
    *("bernoulli", "system"),  # of TABLESAMPLE
}
_NOT_CODE = re.compile(  # what of a PostgreSQL query is literal or comment: E'…\'…', '…', $tag$…$tag$, --…, /*…*/
    r"\b[eE]'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*'|\$(\w*)\$.*?\$\1\$|--[^\n]*|/\*.*?\*/", re.DOTALL
)
_CALL = re.compile(r'"?(\w+)"?\s*\(')


def address(source: str) -> str:
    """The URL that a source names: itself, or what the environment variable of `env:NAME` holds."""
    if not source.startswith(VARIABLE):
        return source
    name = source.removeprefix(VARIABLE)
    if name not in os.environ:
        raise BadInput(f"params.yaml: fetch.corpus.sources names {source}, but {name} is not set")
    return os.environ[name]


def shown(url: str) -> str:
    """A source without the password that its URL may hold."""
    if url.startswith(VARIABLE):
        return url
    from sqlalchemy import make_url  # a third of a second, and only this source needs it
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(url).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):  # ValueError: a port that is no number
        raise BadInput("params.yaml: fetch.corpus.sources has a database URL that SQLAlchemy cannot read") from None


def rows(place: str | Path, query: str, where: str) -> Generator[dict[str, Any], None, None]:
    """The rows of ``query`` as column -> value. ``place``: a URL, or the file of a SQLite database; ``where``: what it
    is called.

    The query runs to the letter: no `:word` or `%` in it is a parameter. It cannot write: SQLite is opened read-only
    and attaches nothing; PostgreSQL takes one SELECT in a read-only transaction, whose functions only answer; other
    databases are rolled back. BadInput, without the password that the URL may hold, when the database cannot be
    reached, refuses the query, or gives two columns of one name.
    """
    from sqlalchemy.exc import SQLAlchemyError

    _check_characters(query, where)
    engine = _engine(place, where)
    options = {"postgresql_readonly": True} if engine.dialect.name == "postgresql" else {}
    try:
        with ExitStack() as opened:
            connection = opened.enter_context(engine.connect())
            connection.execution_options(stream_results=True, yield_per=BUFFER, no_parameters=True, **options)
            _forbid_writing(connection, query, where)
            result = opened.enter_context(closing(connection.exec_driver_sql(query)))
            if not result.returns_rows:
                raise BadInput(f"{where}: the query returns no rows; give a SELECT")

            names = list(result.keys())
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise BadInput(f"{where}: the query gives two columns called {twice!r}; rename one, with AS")

            for row in result.mappings():
                yield dict(row)
    except SQLAlchemyError as error:
        raise BadInput(f"{where}: {_plain(error)}") from None
    finally:
        engine.dispose()


def _check_characters(query: str, where: str) -> None:
    """Refuse what no database takes: NUL, and half a character (a surrogate), which YAML can hold."""
    if bad := re.search("[\0\ud800-\udfff]", query):
        raise BadInput(f"{where}: character {bad.start() + 1} of the query is {bad[0]!r}, which SQL cannot hold")


def _engine(place: str | Path, where: str) -> "Engine":
    """What connects to the database, by one connection that is closed when it is done."""
    from sqlalchemy import create_engine, make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError
    from sqlalchemy.pool import NullPool

    try:
        if isinstance(place, Path):
            return create_engine("sqlite://", poolclass=NullPool, creator=_reader(place, where))
        url = make_url(place)
        if url.get_backend_name() == "sqlite":
            return create_engine("sqlite://", poolclass=NullPool, creator=_reader_of_url(url, where))
        return create_engine(url, poolclass=NullPool)
    except (ArgumentError, NoSuchModuleError, ImportError, ValueError) as error:
        raise BadInput(f"the database {where} cannot be opened: {_plain(error)}") from None


def _reader(path: Path, where: str) -> Callable[[], sqlite3.Connection]:
    """Connects to a SQLite file. ``as_uri`` quotes `#`, `?` and `%`, which would name another file in a URI."""
    if not path.is_file():
        raise BadInput(f"the database {where} cannot be opened: unable to open {path.name}, which is no file")
    return lambda: sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)


def _reader_of_url(url: "URL", where: str) -> Callable[[], sqlite3.Connection]:
    """Connects to what `sqlite:///…` names: a file, a URI of SQLite's own (`file:…?…&uri=true`) or nothing."""
    if not url.database or url.database == ":memory:":
        return lambda: sqlite3.connect(":memory:")
    query = dict(url.query)
    if query.pop("uri", None) == "true":
        return lambda: sqlite3.connect(f"{url.database}?{urlencode({**query, 'mode': 'ro'}, doseq=True)}", uri=True)
    if query:
        raise BadInput(f"the database {where} cannot be opened: SQLite knows no {', '.join(query)} in a URL")
    return _reader(Path(url.database), where)


def _forbid_writing(connection: "Connection", query: str, where: str) -> None:
    match connection.dialect.name:
        case "sqlite":
            connection.exec_driver_sql("PRAGMA query_only = ON")
            # ATTACH makes the file that it names, and so does VACUUM INTO, which attaches it
            attaching = (sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH)
            connection.connection.driver_connection.set_authorizer(  # pyright: ignore[reportOptionalMemberAccess]
                lambda action, *_: sqlite3.SQLITE_DENY if action in attaching else sqlite3.SQLITE_OK
            )
        case "postgresql":
            # A read-only transaction stops what is undone with it, but not a file that lo_export writes, nor what
            # dblink does elsewhere. PostgreSQL marks such functions as volatile.
            called = {name.lower() for name in _CALL.findall(_NOT_CODE.sub(" ", query))}
            volatile = connection.exec_driver_sql(
                "SELECT p.proname FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_language l ON l.oid = p.prolang "
                "WHERE p.provolatile = 'v' AND l.lanname IN ('c', 'internal')"
            ).scalars()
            if acting := sorted(called & set(volatile) - ANSWERING):
                raise BadInput(
                    f"{where}: the query calls {acting[0]}, which does more than read, but a query runs in a read-only "
                    "transaction; leave it out"
                )
        case "mysql" | "mariadb":
            connection.exec_driver_sql("SET TRANSACTION READ ONLY")


def _plain(error: Exception) -> str:
    """The driver's own words, on one line, without SQLAlchemy's reference."""
    words = " ".join(str(getattr(error, "orig", None) or error).split())
    if words in ("not authorized", "authorization denied"):
        return "the query may read this database, but attach, make and load nothing"
    return words
