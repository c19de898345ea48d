"""Rows of a database by query, streamed: nothing is held but a buffer, and nothing can be written."""

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

from stages.door import BadInput

SUFFIXES = {".sqlite", ".sqlite3", ".db"}
BUFFER = 1024  # rows that the driver fetches at a time


VARIABLE = "env:"  # and the name of the environment variable that holds the URL: params.yaml is no place for passwords


def address(source: str, path: Path | None) -> str:
    """What SQLAlchemy connects to: a file as SQLite, opened read-only; else ``source``, a URL or where it stands."""
    if path is not None:
        return f"sqlite:///file:{path.resolve()}?mode=ro&uri=true"
    name = source.removeprefix(VARIABLE)
    if name == source:
        return source
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
    except ArgumentError:
        raise BadInput("params.yaml: fetch.corpus.sources has a database URL that SQLAlchemy cannot read") from None


def rows(url: str, query: str, where: str) -> Generator[dict[str, Any], None, None]:
    """The rows of ``query`` as column -> value, in a transaction that can only read. ``where``: what it is called.

    BadInput, without the password that the URL may hold, when the database cannot be reached or refuses the query.
    """
    from sqlalchemy import create_engine, text
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
    from sqlalchemy.pool import NullPool

    try:
        engine = create_engine(url, poolclass=NullPool)  # one connection, closed when it is done
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise BadInput(f"the database {where} cannot be opened: {_plain(error)}") from None
    options = {"postgresql_readonly": True} if engine.dialect.name == "postgresql" else {}
    try:
        with engine.connect().execution_options(stream_results=True, yield_per=BUFFER, **options) as connection:
            if engine.dialect.name == "sqlite":
                connection.exec_driver_sql("PRAGMA query_only = ON")
            elif engine.dialect.name in ("mysql", "mariadb"):
                connection.exec_driver_sql("SET TRANSACTION READ ONLY")
            found = connection.execute(text(query))
            if not found.returns_rows:
                raise BadInput(f"{where}: the query returns no rows; give a SELECT")
            for row in found.mappings():
                yield dict(row)
    except SQLAlchemyError as error:
        raise BadInput(f"{where}: {_plain(error)}") from None
    finally:
        engine.dispose()


def _plain(error: Exception) -> str:
    """The driver's own words, on one line, without SQLAlchemy's reference."""
    return " ".join(str(getattr(error, "orig", None) or error).split())
