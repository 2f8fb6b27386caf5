"""The tables, and the database that holds them: SQLite in Onsa's home, or any that ``ONSA_DB`` names as a URL.

Only types and statements that every database has are used. Several processes may open, read and write at once: on
SQLite, readers never wait (WAL), and a writer takes the write lock at its start, so that it cannot fail half-way for
having read before another wrote. A :class:`Database` must not be carried over a fork.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Double,
    Engine,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    exc,
    insert,
    inspect,
    make_url,
    select,
)

from onsa.spec.errors import StoreError
from onsa.store.atomic import disk_full
from onsa.store.home import home

VERSION = 1
BUSY_S = 30.0
GROWTH_BYTES = 1_000_000  # what a store that ran out of disk is said to need: room for some thousand metrics

metadata = MetaData()

schema = Table("onsa_schema", metadata, Column("version", Integer, primary_key=True, autoincrement=False))

# Times are seconds since 1970 (UTC) and JSON is text: both mean the same in every database, NaN included.
runs = Table(
    "runs",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("identity", String(64), nullable=False, index=True),
    Column("state", String(16), nullable=False),
    Column("task", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("data", Text, nullable=False),
    Column("adaptation", Text, nullable=False),
    Column("created", Double, nullable=False, index=True),
    Column("updated", Double, nullable=False),
    Column("pid", Integer),
    Column("pid_started", Double),
    Column("host", Text),
    Column("folder", Text, nullable=False),
    Column("recipe", Text, nullable=False),
    Column("summary", Text, nullable=False),
    Column("error", Text),
)


def _of_run(name: str) -> Column[str]:
    return Column(name, String(32), ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)


metrics = Table(
    "metrics",
    metadata,
    _of_run("run"),
    Column("step", BigInteger, primary_key=True, autoincrement=False),
    Column("name", String(128), primary_key=True),
    Column("value", Double),  # SQLite has no NaN and keeps NULL in its place
)

artifacts = Table(
    "artifacts",
    metadata,
    _of_run("run"),
    Column("path", String(512), primary_key=True),
    Column("kind", Text, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("bytes", BigInteger, nullable=False),
)

lineage = Table(
    "lineage",
    metadata,
    _of_run("child"),
    _of_run("parent"),
    Column("relation", String(64), primary_key=True),
)


@final
class Database:
    """An open database with the tables made."""

    def __init__(self, url: str | None = None) -> None:
        """Open ``url``, else ``ONSA_DB``, else the file in Onsa's home.

        Raises:
            StoreError: it cannot be opened, or a newer Onsa made it.
        """
        chosen = url or os.environ.get("ONSA_DB") or f"sqlite:///{home() / 'onsa.db'}"
        try:
            self.place = make_url(chosen).render_as_string(hide_password=True)
            self._engine = _engine(chosen)
        except (exc.ArgumentError, ImportError) as error:
            raise StoreError.of("store-unreachable", reason=str(error)) from None
        self._prepare()

    def close(self) -> None:
        """Let go of every connection."""
        self._engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection that sees one state of the database."""
        with self._explained(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A connection in a transaction that is kept when the block ends well, and undone when it raises."""
        with (
            self._explained(),
            self._engine.connect().execution_options(onsa_writes=True) as connection,
            connection.begin(),
        ):
            yield connection

    def _prepare(self, attempts: int = 3) -> None:
        version = None
        for attempt in range(attempts):
            with self.reading() as connection:
                if inspect(connection).has_table(schema.name):
                    version = connection.scalar(select(schema.c.version))
            if version is not None:
                break
            try:
                with self.writing() as connection:
                    metadata.create_all(connection)
                    connection.execute(insert(schema).values(version=VERSION))
            except (exc.IntegrityError, StoreError):  # another process made the tables first: look again
                if attempt == attempts - 1:
                    raise
        if version is not None and version > VERSION:
            raise StoreError.of("store-newer", place=self.place, found=version, known=VERSION)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except exc.IntegrityError:
            raise
        except exc.DBAPIError as error:
            if "disk is full" in str(error.orig):
                raise disk_full(home(), GROWTH_BYTES) from None
            raise StoreError.of("store-unreachable", reason=f"{self.place}: {error.orig}") from None


def _engine(url: str) -> Engine:
    if make_url(url).get_backend_name() != "sqlite":
        return create_engine(url, pool_pre_ping=True)
    engine = create_engine(url, connect_args={"timeout": BUSY_S})

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _: object) -> None:
        connection.isolation_level = None  # the begin below is the only one: Python's own comes too late
        connection.execute(f"PRAGMA busy_timeout = {int(BUSY_S * 1000)}")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = NORMAL")
        _write_ahead(connection)

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("onsa_writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _write_ahead(connection: Any) -> None:
    """Turn write-ahead logging on. SQLite does not wait for its lock where two processes turn it on at once."""
    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").fetchone()
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
