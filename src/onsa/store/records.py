"""Records: rows that projects own, each visible to its own project alone, in pages and in the order they came."""

from __future__ import annotations

import json
import secrets
import string
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

from sqlalchemy import Column, ColumnElement, Connection, Row, Table, delete, insert, select, update

from onsa.spec.errors import MissingError
from onsa.store.database import Database

ID_LETTERS, ID_LENGTH = string.ascii_letters + string.digits, 24
Order = Literal["asc", "desc"]


def new_id(prefix: str) -> str:
    """An id that cannot be guessed."""
    return prefix + "".join(secrets.choice(ID_LETTERS) for _ in range(ID_LENGTH))


def dumped(value: Any) -> str | None:
    """A value as JSON text; nothing stays nothing."""
    return None if value is None else json.dumps(value, ensure_ascii=False)


def loaded(text: str | None) -> Any:
    """What :func:`dumped` made text of."""
    return None if text is None else json.loads(text)


def holding(column: Column[Any], wanted: Mapping[str, str] | None) -> list[ColumnElement[bool]]:
    """That a column of JSON objects holds some texts under some keys, or nothing at all."""
    if wanted is None:
        return [column.is_(None)]
    pairs = [json.dumps({key: value}, ensure_ascii=False)[1:-1] for key, value in wanted.items()]
    return [column.contains(pair, autoescape=True) for pair in pairs]


@dataclass(frozen=True)
class Page:
    """Some of a list, from behind the record ``after`` on; a list that is asked without a limit is whole."""

    after: str | None = None
    limit: int | None = None
    order: Order = "desc"


@final
class Records:
    """The rows of one table.

    Every method with ``project`` sees what that project owns, and of the rest no more than of what never was; ``None``
    is the service itself, which sees all.
    """

    def __init__(self, database: Database, table: Table, prefix: str, kind: str) -> None:
        """``prefix``: what the table's ids begin with; ``kind``: what a row is, as messages have it."""
        self._database = database
        self.table = table
        self._prefix = prefix
        self._kind = kind

    def add(self, connection: Connection, project: str, **values: Any) -> str:
        """Write a new row inside a transaction; returns its id."""
        known = {"id": new_id(self._prefix), "project": project, "created": time.time(), **values}
        connection.execute(insert(self.table).values(**known))
        return str(known["id"])

    def get(self, project: str | None, name: str) -> Row[Any]:
        """One row.

        Raises:
            MissingError: the project has none of this id.
        """
        with self._database.reading() as connection:
            return self.read(connection, project, name)

    def read(self, connection: Connection, project: str | None, name: str) -> Row[Any]:
        """:meth:`get`, inside a transaction."""
        query = select(self.table).where(self.table.c.id == name, *self._own(project))
        row = connection.execute(query).first()
        if row is None:
            raise self.missing(name)
        return row

    def page(self, project: str | None, page: Page, *where: ColumnElement[bool]) -> tuple[list[Row[Any]], bool]:
        """Some rows, and whether there are more.

        Raises:
            MissingError: there is no row that the page could begin behind.
        """
        seq, falling = self.table.c.seq, page.order == "desc"
        query = select(self.table).where(*self._own(project), *where)
        with self._database.reading() as connection:
            if page.after is not None:
                last = self.read(connection, project, page.after).seq
                query = query.where(seq < last if falling else seq > last)
            query = query.order_by(seq.desc() if falling else seq)
            if page.limit is not None:
                query = query.limit(page.limit + 1)
            rows = list(connection.execute(query))
        more = page.limit is not None and len(rows) > page.limit
        return (rows[: page.limit] if more else rows), more

    def change(self, connection: Connection, project: str | None, name: str, values: Mapping[str, Any]) -> None:
        """Write values of one row inside a transaction.

        Raises:
            MissingError: the project has none of this id.
        """
        where = (self.table.c.id == name, *self._own(project))
        if connection.execute(update(self.table).where(*where).values(**values)).rowcount == 0:
            raise self.missing(name)

    def remove(self, connection: Connection, project: str | None, name: str) -> None:
        """Remove one row inside a transaction.

        Raises:
            MissingError: the project has none of this id.
        """
        where = (self.table.c.id == name, *self._own(project))
        if connection.execute(delete(self.table).where(*where)).rowcount == 0:
            raise self.missing(name)

    def _own(self, project: str | None) -> list[ColumnElement[bool]]:
        return [] if project is None else [self.table.c.project == project]

    def missing(self, name: str) -> MissingError:
        """The error that says that a project has none of this id."""
        return MissingError.of("record-missing", kind=self._kind, value=name)
