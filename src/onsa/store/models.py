"""Models that answer under a name of their own, beside the catalogue's bases: what jobs made, and their checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, final

from sqlalchemy import Connection, Row, select

from onsa.spec.errors import MissingError
from onsa.store import schema as db
from onsa.store.database import Database
from onsa.store.records import Page, Records


@dataclass(frozen=True, slots=True)
class Served:
    """A model. id: its name. base: what it was tuned from. run: whose recipe it has. folder: holds its ``model``."""

    id: str
    project: str
    created: float
    base: str
    run: str
    folder: str

    @property
    def whole(self) -> bool:
        """Whether it is what its run came to, and not a checkpoint on the way."""
        return PurePath(self.folder).name == self.run


@final
class Models:
    """The models of all projects."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._records = Records(database, db.models, "", "model")
        self._permissions = Records(database, db.permissions, "cp_", "permission")

    def get(self, project: str | None, name: str) -> Served:
        """One model: of a project's own, or one that it may ask.

        Raises:
            MissingError: the project sees none of this name.
        """
        where = (db.permissions.c.model == name, db.permissions.c.granted == project)
        with self._database.reading() as connection:
            granted = connection.scalar(select(db.permissions.c.id).where(*where)) is not None
        return _served(self._records.get(None if granted else project, name))

    def find(self, project: str | None, name: str) -> Served | None:
        """One model, or nothing where the project sees none of this name."""
        try:
            return self.get(project, name)
        except MissingError:
            return None

    def list(self, project: str) -> list[Served]:
        """A project's models, the oldest first."""
        return [_served(row) for row in self._records.page(project, Page(order="asc"))[0]]

    def remove(self, project: str, name: str) -> None:
        """Let a model answer no more; its run stays.

        Raises:
            MissingError: the project has none of this name.
        """
        with self._database.writing() as connection:
            self._records.remove(connection, project, name)

    def grant(self, name: str, projects: Sequence[str]) -> Sequence[Row[Any]]:
        """Let further projects ask a model; returns a permission each.

        Raises:
            MissingError: no such model, or no such project.
        """
        owner = self.get(None, name).project
        with self._database.writing() as connection:
            known = set(connection.scalars(select(db.projects.c.id)))
            for project in projects:
                if project not in known:
                    raise MissingError.of("record-missing", kind="project", value=project)
            made = [self._permissions.add(connection, owner, model=name, granted=project) for project in projects]
        return [self._permissions.get(None, one) for one in made]

    def grants(self, name: str, page: Page, project: str | None) -> tuple[Sequence[Row[Any]], bool]:
        """The permissions of a model, those of one project where it is named, and whether there are more.

        Raises:
            MissingError: no such model.
        """
        self.get(None, name)
        where = [db.permissions.c.model == name]
        if project is not None:
            where.append(db.permissions.c.granted == project)
        return self._permissions.page(None, page, *where)

    def revoke(self, name: str, permission: str) -> None:
        """Take a permission back.

        Raises:
            MissingError: the model has no such permission.
        """
        with self._database.writing() as connection:
            if self._permissions.read(connection, None, permission).model != name:
                raise self._permissions.missing(permission)
            self._permissions.remove(connection, None, permission)

    def add(self, connection: Connection, project: str, name: str, base: str, run: str, folder: str) -> None:
        """Write a model down inside a transaction, where there is none of this name yet."""
        if connection.scalar(select(db.models.c.id).where(db.models.c.id == name)) is None:
            self._records.add(connection, project, id=name, base=base, run=run, folder=folder)

    def drop(self, connection: Connection, name: str) -> str | None:
        """Remove a model inside a transaction, where there is one; returns its folder."""
        folder: str | None = connection.scalar(select(db.models.c.folder).where(db.models.c.id == name))
        if folder is not None:
            self._records.remove(connection, None, name)
        return folder


def _served(row: Row[Any]) -> Served:
    return Served(row.id, row.project, row.created, row.base, row.run, row.folder)
