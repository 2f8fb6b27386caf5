"""Completions that a project asked to keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from sqlalchemy import ColumnElement, Row

from onsa.store import schema as db
from onsa.store.database import Database
from onsa.store.records import Page, Records, dumped, holding, loaded


@dataclass(frozen=True, slots=True)
class Kept:
    """A completion. messages: what it was asked; document: what was answered, as the API told it."""

    id: str
    created: float
    model: str
    metadata: dict[str, str]
    messages: list[dict[str, Any]]
    document: dict[str, Any]


@final
class Completions:
    """The kept completions of all projects."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._records = Records(database, db.completions, "chatcmpl-", "completion")

    def keep(
        self,
        project: str,
        document: Mapping[str, Any],
        messages: Sequence[Mapping[str, Any]],
        metadata: Mapping[str, str],
    ) -> None:
        """Keep a completion under the id that its document has."""
        values = {"id": document["id"], "model": document["model"], "metadata": dumped(dict(metadata))}
        with self._database.writing() as connection:
            said = {"messages": dumped(list(messages)), "document": dumped(dict(document))}
            self._records.add(connection, project, **values, **said)

    def get(self, project: str, name: str) -> Kept:
        """One completion.

        Raises:
            MissingError: the project kept none of this id.
        """
        return _kept(self._records.get(project, name))

    def page(
        self, project: str, page: Page, model: str | None = None, metadata: Mapping[str, str] | None = None
    ) -> tuple[list[Kept], bool]:
        """Some completions, and whether there are more; those of a model, and with some metadata, where given."""
        where: list[ColumnElement[bool]] = holding(db.completions.c.metadata, metadata or {})
        if model is not None:
            where.append(db.completions.c.model == model)
        rows, more = self._records.page(project, page, *where)
        return [_kept(row) for row in rows], more

    def note(self, project: str, name: str, metadata: Mapping[str, str]) -> Kept:
        """Give a completion other metadata.

        Raises:
            MissingError: the project kept none of this id.
        """
        with self._database.writing() as connection:
            self._records.change(connection, project, name, {"metadata": dumped(dict(metadata))})
        return self.get(project, name)

    def remove(self, project: str, name: str) -> None:
        """Keep a completion no longer.

        Raises:
            MissingError: the project kept none of this id.
        """
        with self._database.writing() as connection:
            self._records.remove(connection, project, name)


def _kept(row: Row[Any]) -> Kept:
    said = (loaded(row.metadata), loaded(row.messages), loaded(row.document))
    return Kept(row.id, row.created, row.model, *said)
