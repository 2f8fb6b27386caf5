"""Profile: what the columns of a table look like, so that tasks can recognise themselves in it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Look(StrEnum):
    """What a column's values look like."""

    TEXT = "text"  # free text
    CATEGORY = "category"  # few distinct short values
    NUMBER = "number"
    MESSAGES = "messages"  # lists of {role, content}
    LABELS = "labels"  # lists of short strings
    EMPTY = "empty"
    OTHER = "other"


@dataclass(frozen=True)
class ColumnProfile:
    """One column: its look, and the figures behind it."""

    name: str
    look: Look
    filled: int  # rows with a value
    distinct: int
    mean_length: float  # characters
    examples: tuple[str, ...]  # up to three


@dataclass(frozen=True)
class Profile:
    """A table's columns, its number of rows, and its language (ISO 639-1) where it could be told."""

    columns: tuple[ColumnProfile, ...]
    rows: int
    language: str | None

    def column(self, name: str) -> ColumnProfile | None:
        return next((column for column in self.columns if column.name == name), None)

    def named(self, *names: str) -> ColumnProfile | None:
        """The first column whose name is one of these, case aside."""
        by_name = {column.name.strip().lower(): column for column in self.columns}
        return next((by_name[name] for name in names if name in by_name), None)
