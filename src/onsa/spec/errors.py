"""What can go wrong, as one tree.

::

    OnsaError
    ├── RecipeError     the recipe does not say something that can be run
    ├── DataError       a file or its rows
    ├── ModelError      a base model: unknown, unreachable, not fitting
    ├── MachineError    disk, memory, permissions
    ├── TrainingError   a run that had to stop (a loss that is not finite, a broken checkpoint)
    └── StoreError      a run, or what a project owns, that is not there or is in the wrong state
        ├── MissingError    a project has nothing of this name
        └── ConflictError   what is there does not allow it now

An error carries one or more :class:`Problem`, each with a code from the message catalogue, the place (file, line,
recipe key) and the values that the message names. The words live in ``messages/en`` and ``messages/ja``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import StrEnum
from typing import Any, Self

from onsa.spec.messages import say


class Level(StrEnum):
    """How much a problem matters: an error stops the run, a warning is shown, a note informs."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, where it is, and the values that explain it."""

    code: str
    values: dict[str, Any] = field(default_factory=dict)
    file: str | None = None
    line: int | None = None
    key: str | None = None
    level: Level = Level.ERROR

    @property
    def where(self) -> str:
        """``file:line: key`` with the parts that are known."""
        place = self.file or ""
        if self.line is not None:
            place += f":{self.line}"
        return ": ".join(part for part in (place, self.key) if part)

    @property
    def what(self) -> str:
        return say(self.code, **self.values)

    @property
    def fix(self) -> str:
        return say(f"{self.code}.fix", **self.values)

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return f"{place}{self.what} {self.fix}".strip()

    def document(self) -> dict[str, Any]:
        """The problem as plain JSON values, for ``--json``."""
        return {
            "code": self.code,
            "level": self.level.value,
            "file": self.file,
            "line": self.line,
            "key": self.key,
            "message": self.what,
            "fix": self.fix,
        }


class OnsaError(Exception):
    """Base of every error that Onsa raises on purpose."""

    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))

    @classmethod
    def of(
        cls, code: str, *, file: str | None = None, line: int | None = None, key: str | None = None, **values: Any
    ) -> Self:
        """An error of this class with one problem."""
        return cls(Problem(code, values, file, line, key))


class RecipeError(OnsaError):
    """The recipe does not say something that can be run."""


class DataError(OnsaError):
    """A file or its rows."""


class ModelError(OnsaError):
    """A base model: unknown, unreachable, not fitting."""


class MachineError(OnsaError):
    """Disk, memory, permissions."""


class TrainingError(OnsaError):
    """A run that had to stop."""


class StoreError(OnsaError):
    """A run, or what a project owns, that is not there or is in the wrong state."""


class MissingError(StoreError):
    """A project has nothing of this name."""


class ConflictError(StoreError):
    """What is there does not allow it now."""


def unknown(code: str, value: str, known: Iterable[object], *, key: str | None = None, **values: object) -> Problem:
    """A problem about a name that is not known, with the nearest valid one and the whole choice."""
    choices = [str(name) for name in known]
    near = get_close_matches(str(value), choices, n=1, cutoff=0.5)
    nearest = near[0] if near else (choices[0] if choices else "-")
    return Problem(code, {"value": value, "near": nearest, "choices": ", ".join(choices), **values}, key=key)
