"""What the store says about a key: whose it is and what it allows. Imports no database."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

FIRST = "default"  # the project that is made where none is named


class Scope(StrEnum):
    """What a key allows: to train (files, jobs), to ask models, or all, other projects' permissions among it."""

    TRAIN = "train"
    INFER = "infer"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Key:
    """A key as it is kept. shown: its last letters; created, revoked: seconds since 1970, UTC."""

    id: str
    project: str
    name: str
    shown: str
    scopes: frozenset[Scope]
    created: float
    revoked: float | None

    def allows(self, scope: Scope) -> bool:
        """Whether the key is still good for this."""
        return self.revoked is None and (scope in self.scopes or Scope.ADMIN in self.scopes)
