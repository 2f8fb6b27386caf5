"""The database that holds the tables: SQLite in Onsa's home, or PostgreSQL where ``ONSA_DB`` names one as a URL.

Several processes may open, read and write at once. Readers never wait, and see one state; a writer takes the one write
lock at its start, so that it cannot fail half-way for having read before another wrote. A :class:`Database` must not be
carried over a fork.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self, final

from sqlalchemy import URL, Connection, Engine, create_engine, event, exc, insert, inspect, make_url, select, update

from onsa.spec.errors import StoreError
from onsa.store.atomic import disk_full
from onsa.store.home import home
from onsa.store.schema import VERSION, metadata, schema

BUSY_S = 30.0
WRITE_LOCK = 0x6F6E7361  # "onsa": the number of PostgreSQL's lock that writers hold one after another
GROWTH_BYTES = 1_000_000  # what a store that ran out of disk is said to need: room for some thousand metrics


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
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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
            if version is not None and version >= VERSION:
                break
            try:
                with self.writing() as connection:
                    metadata.create_all(connection)  # those that are there are left as they are
                    if version is None:
                        connection.execute(insert(schema).values(version=VERSION))
                    connection.execute(update(schema).values(version=VERSION))
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
    given = make_url(url)
    if given.get_backend_name() == "sqlite":
        return _sqlite(given)
    if given.get_backend_name() == "postgresql":
        return _postgresql(given)
    raise StoreError.of("store-unreachable", reason=f"{given.drivername}: sqlite and postgresql are known")


def _postgresql(url: URL) -> Engine:
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    # One that stands still in a transaction, or whose machine is gone, would keep all others from writing.
    idle = f"-c idle_in_transaction_session_timeout={int(BUSY_S * 1000)}"
    url = url.update_query_dict({"options": f"{url.query.get('options', '')} {idle}".strip()})
    engine = create_engine(url, pool_pre_ping=True)

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("onsa_writes")
        lock = f"SELECT pg_advisory_xact_lock({WRITE_LOCK})"  # each statement behind it sees what others wrote before
        connection.exec_driver_sql(lock if writes else "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")

    return engine


def _sqlite(url: URL) -> Engine:
    engine = create_engine(url, connect_args={"timeout": BUSY_S})

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _: object) -> None:
        connection.isolation_level = None  # the begin below is the only one: Python's own comes too late
        connection.execute(f"PRAGMA busy_timeout = {int(BUSY_S * 1000)}")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA case_sensitive_like = ON")  # as elsewhere
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
