"""Projects, and the keys with which they are reached. Of a key, its SHA-256 and its last letters are kept."""

from __future__ import annotations

import hashlib
import hmac
import time
from typing import Any, final

from sqlalchemy import Row, insert, select
from sqlalchemy.exc import IntegrityError

from onsa.spec.errors import ConflictError, MissingError
from onsa.store import schema as db
from onsa.store.database import Database
from onsa.store.key import FIRST, Key, Scope
from onsa.store.records import Page, Records, dumped, loaded, new_id

PREFIX, SHOWN = "sk-onsa-", 4  # the last letters are enough to tell one's keys apart


@final
class Keys:
    """The keys of all projects."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._records = Records(database, db.keys, "key_", "key")

    def project(self, name: str = FIRST) -> str:
        """The id of the project of this name, which is made where there is none."""
        query = select(db.projects.c.id).where(db.projects.c.name == name)
        with self._database.reading() as connection:
            known = connection.scalar(query)
        if known is None:
            try:
                with self._database.writing() as connection:
                    known = new_id("proj_")
                    connection.execute(insert(db.projects).values(id=known, name=name, created=time.time()))
            except IntegrityError:  # made by another process a moment ago
                return self.project(name)
        return str(known)

    def projects(self) -> dict[str, str]:
        """The name of each project by its id."""
        with self._database.reading() as connection:
            return {row.id: row.name for row in connection.execute(select(db.projects).order_by(db.projects.c.created))}

    def create(self, project: str, name: str, scopes: frozenset[Scope], secret: str | None = None) -> tuple[Key, str]:
        """A new key, and its secret, which is told this once; ``secret`` where it is to be this one.

        Raises:
            ConflictError: the secret is taken.
        """
        secret = secret or new_id(PREFIX) + new_id("")
        values = {"name": name, "sha256": _digest(secret), "shown": secret[-SHOWN:], "scopes": dumped(sorted(scopes))}
        try:
            with self._database.writing() as connection:
                made = self._records.add(connection, project, **values)
        except IntegrityError:
            raise ConflictError.of("key-taken") from None
        return _key(self._records.get(project, made)), secret

    def find(self, secret: str) -> Key | None:
        """The key with this secret, unless it is revoked.

        What is looked up is a digest: how long that takes says nothing about how much of a secret was guessed.
        """
        digest = _digest(secret)
        with self._database.reading() as connection:
            row = connection.execute(select(db.keys).where(db.keys.c.sha256 == digest)).first()
        if row is None or row.revoked is not None or not hmac.compare_digest(row.sha256, digest):
            return None
        return _key(row)

    def list(self, project: str | None = None) -> list[Key]:
        """Keys, the newest first, those that are revoked too."""
        return [_key(row) for row in self._records.page(project, Page())[0]]

    def revoke(self, name: str) -> Key:
        """Make a key useless, by its id or its last letters.

        Raises:
            MissingError: no key of these, or several.
        """
        found = [key for key in self.list() if name in (key.id, key.shown) and key.revoked is None]
        if len(found) != 1:
            raise MissingError.of("record-missing", kind="key", value=name)
        with self._database.writing() as connection:
            self._records.change(connection, None, found[0].id, {"revoked": time.time()})
        return found[0]


def _digest(secret: str) -> str:
    """Plain SHA-256: a secret is 48 random letters, which nobody finds by trying; a slow hash would add nothing."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _key(row: Row[Any]) -> Key:
    scopes = frozenset(map(Scope, loaded(row.scopes)))
    return Key(row.id, row.project, row.name, row.shown, scopes, row.created, row.revoked)
