"""Table and Row: what reading a file gives, before and after its columns have found their roles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """One row: values by column (in a table) or by the task's role (in a data set), and where it stands."""

    values: dict[str, Any]
    file: str
    line: int


def place(row: Row) -> str:
    """Where a row stands, as ``file:line``."""
    return f"{row.file}:{row.line}"


@dataclass(frozen=True)
class Table:
    """The rows of one file as they were found.

    format, encoding, delimiter: what was detected or given; ``sha256`` is that of the file's bytes (for a hub data set,
    of its rows).
    """

    rows: Sequence[Row]
    columns: list[str]
    file: str
    format: str
    sha256: str
    encoding: str | None = None
    delimiter: str | None = None


@dataclass(frozen=True)
class Dataset:
    """Rows by side of the split, their values by role, and a hash of all of it.

    language: an ISO 639-1 code, or ``None`` where it could not be told.
    removed: how many rows were left out, by message code (``row-empty``, …).
    """

    train: Sequence[Row]
    validation: Sequence[Row]
    test: Sequence[Row]
    sha256: str
    language: str | None = None
    removed: dict[str, int] = field(default_factory=dict)

    @property
    def sides(self) -> dict[str, Sequence[Row]]:
        return {"train": self.train, "validation": self.validation, "test": self.test}
