"""A store for every test that asks for one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from onsa.store.runs import Store


@pytest.fixture
def onsa_home(home: Path) -> Path:
    return home


@pytest.fixture
def store() -> Iterator[Store]:
    with Store() as opened:
        yield opened
