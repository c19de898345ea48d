"""Read the rows that a query finds in a database, a buffer of them at a time. The query cannot write."""

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
# A source `env:NAME` names the environment variable that holds the URL, because params.yaml is no place for passwords.
VARIABLE = "env:"

# Functions of PostgreSQL that are volatile (their value may change from call to call) but write nothing, so a query may
# call them.
HARMLESS_VOLATILE = {
    *("random", "random_normal", "setseed", "normal_rand", "clock_timestamp", "timeofday", "gen_random_uuid"),
    *("gen_random_bytes", "uuid_generate_v1", "uuid_generate_v1mc", "uuid_generate_v4", "uuidv4", "uuidv7"),
    *("currval", "lastval", "lo_get", "ts_stat", "ts_rewrite", "pg_sleep", "array_shuffle", "array_sample"),
    *("pg_relation_size", "pg_table_size", "pg_total_relation_size", "pg_indexes_size", "pg_database_size"),
    *("bernoulli", "system"),  # of TABLESAMPLE
}
_NOT_CODE = re.compile(  # literals and comments of a PostgreSQL query: E'…\'…', '…', $tag$…$tag$, --…, /*…*/
    r"\b[eE]'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*'|\$(\w*)\$.*?\$\1\$|--[^\n]*|/\*.*?\*/", re.DOTALL
)
_CALL = re.compile(r'"?(\w+)"?\s*\(')  # the name of a function that is called


def address(source: str) -> str:
    """Return the URL of a source: the source itself, or for `env:NAME` the value of that environment variable.

    Raises BadInput where the variable is not set.
    """
    if not source.startswith(VARIABLE):
        return source
    name = source.removeprefix(VARIABLE)
    if name not in os.environ:
        raise BadInput(f"params.yaml: fetch.corpus.sources names {source}, but {name} is not set")
    return os.environ[name]


def shown(url: str) -> str:
    """Return a source without the password that its URL may hold, for messages and meta.json; `env:NAME` as it is.

    Raises BadInput, without the URL, where SQLAlchemy cannot read the URL.
    """
    if url.startswith(VARIABLE):
        return url
    from sqlalchemy import make_url  # a third of a second, and only this source needs it
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(url).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):  # ValueError: a port that is no number
        raise BadInput("params.yaml: fetch.corpus.sources has a database URL that SQLAlchemy cannot read") from None


def rows(database: str | Path, query: str, where: str) -> Generator[dict[str, Any], None, None]:
    """Yield the rows of ``query`` as column -> value.

    ``database``: a URL, or the file of a SQLite database. ``where``: what messages call it.

    The query is sent as it is written: no `:word` or `%` in it is a parameter. It cannot write. SQLite is opened
    read-only and cannot attach another file. PostgreSQL runs one SELECT in a read-only transaction, which may call no
    function that does more than read. MySQL and MariaDB run a read-only transaction. All others roll the transaction
    back.

    Raises BadInput, without the password that the URL may hold, when the database cannot be reached or refuses the
    query, or when two columns of the result have the same name.
    """
    from sqlalchemy.exc import SQLAlchemyError

    _check_characters(query, where)
    engine = _engine(database, where)
    options = {"postgresql_readonly": True} if engine.dialect.name == "postgresql" else {}
    try:
        with ExitStack() as opened:
            connection = opened.enter_context(engine.connect())
            # With stream_results, psycopg declares a cursor for the query. PostgreSQL takes one SELECT there, no more.
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
    """Refuse characters that no database accepts: NUL, and half a character (a surrogate), which YAML can hold."""
    if bad := re.search("[\0\ud800-\udfff]", query):
        raise BadInput(f"{where}: character {bad.start() + 1} of the query is {bad[0]!r}, which SQL cannot hold")


def _engine(database: str | Path, where: str) -> "Engine":
    """Create the engine, whose connection is closed after use.

    Raises BadInput for a file that does not exist, a URL that cannot be read, and a database whose driver is missing.
    """
    from sqlalchemy import create_engine, make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError
    from sqlalchemy.pool import NullPool

    try:
        # SQLite connects by a function of ours, which opens the file read-only whatever the URL says.
        if isinstance(database, Path):
            return create_engine("sqlite://", poolclass=NullPool, creator=_reader(database, where))
        url = make_url(database)
        if url.get_backend_name() == "sqlite":
            return create_engine("sqlite://", poolclass=NullPool, creator=_reader_of_url(url, where))
        return create_engine(url, poolclass=NullPool)
    except (ArgumentError, NoSuchModuleError, ImportError, ValueError) as error:
        raise BadInput(f"the database {where} cannot be opened: {_plain(error)}") from None


def _reader(path: Path, where: str) -> Callable[[], sqlite3.Connection]:
    """Make the function that connects to a SQLite file, read-only."""
    if not path.is_file():
        raise BadInput(f"the database {where} cannot be opened: unable to open {path.name}, which is no file")
    # `as_uri` quotes `#`, `?` and `%`, which would name another file in a URI.
    return lambda: sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)


def _reader_of_url(url: "URL", where: str) -> Callable[[], sqlite3.Connection]:
    """Make the function that connects to a `sqlite:///…` URL, read-only.

    The URL may name a file, a URI of SQLite's own (`file:…?…&uri=true`), or nothing, which is an empty database in
    memory.
    """
    if not url.database or url.database == ":memory:":
        return lambda: sqlite3.connect(":memory:")

    query = dict(url.query)
    if query.pop("uri", None) == "true":
        return lambda: sqlite3.connect(f"{url.database}?{urlencode({**query, 'mode': 'ro'}, doseq=True)}", uri=True)
    if query:
        raise BadInput(f"the database {where} cannot be opened: SQLite knows no {', '.join(query)} in a URL")
    return _reader(Path(url.database), where)


def _forbid_writing(connection: "Connection", query: str, where: str) -> None:
    """Make SQLite, MySQL and MariaDB refuse to write, and check the functions that a PostgreSQL query calls.

    PostgreSQL's transaction is read-only already, by the options in :func:`rows`. Raises BadInput for a function that
    may write all the same. For other databases this does nothing.
    """
    match connection.dialect.name:
        case "sqlite":
            connection.exec_driver_sql("PRAGMA query_only = ON")
            # ATTACH creates the file that it names. So does VACUUM INTO, which attaches it.
            attaching = (sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH)
            connection.connection.driver_connection.set_authorizer(  # pyright: ignore[reportOptionalMemberAccess]
                lambda action, *_: sqlite3.SQLITE_DENY if action in attaching else sqlite3.SQLITE_OK
            )
        case "postgresql":
            # A read-only transaction forbids all writes that a rollback could undo. But it does not forbid lo_export,
            # which writes a file, or dblink, which writes to another database. Such functions are marked as volatile
            # and written in C. Functions in SQL or PL/pgSQL are let through: they run inside the transaction.
            called = {name.lower() for name in _CALL.findall(_NOT_CODE.sub(" ", query))}
            volatile = connection.exec_driver_sql(
                "SELECT p.proname FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_language l ON l.oid = p.prolang "
                "WHERE p.provolatile = 'v' AND l.lanname IN ('c', 'internal')"
            ).scalars()
            if may_write := sorted(called & (set(volatile) - HARMLESS_VOLATILE)):
                raise BadInput(
                    f"{where}: the query calls {may_write[0]}, which does more than read, but a query runs in a "
                    "read-only transaction; leave it out"
                )
        case "mysql" | "mariadb":
            connection.exec_driver_sql("SET TRANSACTION READ ONLY")


def _plain(error: Exception) -> str:
    """Return the driver's own message on one line, without the link that SQLAlchemy adds."""
    words = " ".join(str(getattr(error, "orig", None) or error).split())
    # SQLite says no more than this where the authorizer of _forbid_writing denies an action.
    if words in ("not authorized", "authorization denied"):
        return "the query may read this database, but attach, make and load nothing"
    return words
