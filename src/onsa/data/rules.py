"""Rules: what the data layer asks of a task. Tasks stand above it, so it knows them only by these few functions."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from onsa.data.table import Row
from onsa.spec.component import Form


class Rules(Protocol):
    """The part of a task that says what a row means (see :class:`onsa.tasks.base.Task`)."""

    roles: ClassVar[dict[str, bool]]
    further: ClassVar[bool]

    @property
    def provides(self) -> Form: ...

    def problem_of(self, row: Row) -> tuple[str, dict[str, Any]] | None: ...

    def inputs(self, row: Row) -> str: ...

    def answer(self, row: Row) -> str: ...
