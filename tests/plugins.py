"""A distribution of a third party, installed for a test: its modules, and the kinds that its entry points name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from onsa.spec import registry


@contextmanager
def distribution(
    site: Path, modules: Mapping[str, str], points: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Modules by their path under ``site``, and the text of the distribution's entry points."""
    about = site / "party-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: party\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(points)
    for name, text in modules.items():
        (site / name).parent.mkdir(exist_ok=True)
        (site / name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(site))
    _forget()
    yield
    monkeypatch.undo()
    _forget()


def _forget() -> None:
    registry.kinds.cache_clear()
    registry.load.cache_clear()
