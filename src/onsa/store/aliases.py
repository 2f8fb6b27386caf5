"""Aliases: names that lead to models, some of the askers to one and some to another."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from sqlalchemy import Row, delete, select

from onsa.spec.errors import DataError
from onsa.store import schema as db
from onsa.store.database import Database
from onsa.store.records import Page, Records, dumped, loaded


@dataclass(frozen=True, slots=True)
class Alias:
    """A name, and the weights of the models that it leads to."""

    id: str
    project: str
    created: float
    name: str
    targets: dict[str, float]

    def target(self, who: str) -> str:
        """The model for one who asks: the same each time while the weights stay, and as often as its weight says."""
        digest = hashlib.sha256(f"{self.id} {who}".encode()).digest()
        place = int.from_bytes(digest[:8]) / 2**64 * sum(self.targets.values())
        for model, weight in self.targets.items():
            place -= weight
            if place < 0:
                return model
        return next(reversed(self.targets))


def weights(words: Sequence[str]) -> dict[str, float]:
    """What ``MODEL`` and ``MODEL=WEIGHT`` say; a weight that is not said is 1.

    Raises:
        DataError: a weight is no number.
    """
    found: dict[str, float] = {}
    for word in words:
        model, mark, weight = word.rpartition("=")
        try:
            found |= {model: float(weight)} if mark else {word: 1.0}
        except ValueError:
            raise DataError.of("alias-weights", key=word) from None
    return found


@final
class Aliases:
    """The aliases of all projects."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._records = Records(database, db.aliases, "alias_", "alias")

    def set(self, project: str, name: str, targets: Mapping[str, float]) -> Alias:
        """Let a name lead to models, in place of those that it led to.

        Raises:
            DataError: no target, or a weight that is not above 0.
        """
        if not targets or not all(0 < weight < float("inf") for weight in targets.values()):
            raise DataError.of("alias-weights", key=name)
        mine = (db.aliases.c.project == project, db.aliases.c.name == name)
        with self._database.writing() as connection:
            connection.execute(delete(db.aliases).where(*mine))
            made = self._records.add(connection, project, name=name, targets=dumped(dict(targets)))
        return _alias(self._records.get(project, made))

    def find(self, project: str, name: str) -> Alias | None:
        """What a name leads to, where a project has an alias of it."""
        mine = (db.aliases.c.project == project, db.aliases.c.name == name)
        with self._database.reading() as connection:
            row = connection.execute(select(db.aliases).where(*mine)).first()
        return None if row is None else _alias(row)

    def list(self, project: str | None) -> list[Alias]:
        """Aliases, the oldest first."""
        return [_alias(row) for row in self._records.page(project, Page(order="asc"))[0]]

    def remove(self, project: str, name: str) -> None:
        """Let a name lead nowhere.

        Raises:
            MissingError: the project has no alias of it.
        """
        found = self.find(project, name)
        if found is None:
            raise self._records.missing(name)
        with self._database.writing() as connection:
            self._records.remove(connection, project, found.id)


def _alias(row: Row[Any]) -> Alias:
    return Alias(row.id, row.project, row.created, row.name, loaded(row.targets))
