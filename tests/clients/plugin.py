"""A plugin of pytest: before each test, all that it asks for by name is put back."""

import pytest

from clients.seeded import seed
from onsa.store.database import Database


@pytest.fixture(scope="session")
def database() -> Database:
    return Database()


@pytest.fixture(autouse=True)
def seeded(request: pytest.FixtureRequest, database: Database) -> None:
    seed(database, request.node.name)
