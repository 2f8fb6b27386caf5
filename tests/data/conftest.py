"""A small task, and a folder to write files into."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from onsa.data.table import Row
from onsa.spec.component import Form


class Sorting:
    """Texts with a label, as far as the data layer looks at a task."""

    roles: ClassVar[dict[str, bool]] = {"text": True, "label": True, "note": False}
    further: ClassVar[bool] = False

    @property
    def provides(self) -> Form:
        return Form.LABELLED

    def problem_of(self, row: Row) -> tuple[str, dict[str, Any]] | None:
        return None if str(row.values.get("text") or "").strip() else ("prompt-incomplete", {"role": "text"})

    def inputs(self, row: Row) -> str:
        return str(row.values["text"])

    def answer(self, row: Row) -> str:
        return str(row.values["label"])


@pytest.fixture
def task() -> Sorting:
    return Sorting()


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes], str]:
    def write(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write
