"""A home of its own for every test of the store."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from onsa.store.runs import Store


@pytest.fixture(autouse=True)
def onsa_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    monkeypatch.setenv("ONSA_HOME", str(folder))
    monkeypatch.setenv("ONSA_LANG", "en")
    monkeypatch.delenv("ONSA_DB", raising=False)
    return folder


@pytest.fixture
def store() -> Iterator[Store]:
    with Store() as opened:
        yield opened
