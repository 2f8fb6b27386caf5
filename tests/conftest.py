"""Shared fixtures: a home of its own for every test, tiny bases and tiny data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side


def pytest_configure() -> None:
    """``ONSA_TEST_ACCEL=off`` runs the same tests on the plain path: every recipe that says nothing gets no pass."""
    if os.environ.get("ONSA_TEST_ACCEL") == "off":
        from onsa.spec.recipe import Recipe
        from onsa.spec.sections import Accel

        Recipe.model_fields["accel"].default = Accel(mode="off")
        Recipe.model_rebuild(force=True)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An ONSA_HOME that only this test sees, and English messages."""
    folder = tmp_path / "home"
    monkeypatch.setenv("ONSA_HOME", str(folder))
    monkeypatch.setenv("ONSA_LANG", "en")
    monkeypatch.delenv("ONSA_DB", raising=False)
    server = os.environ.get("ONSA_TEST_DB")
    if server is None:
        yield folder
        return
    with _emptied(server) as database:
        monkeypatch.setenv("ONSA_DB", database)
        yield folder


@contextmanager
def _emptied(server: str) -> Iterator[str]:
    """A new database beside that of a PostgreSQL URL: ``ONSA_TEST_DB`` runs the same tests on it."""
    from sqlalchemy import create_engine, make_url, text

    name = f"onsa_{uuid4().hex[:12]}"
    engine = create_engine(make_url(server).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
        yield make_url(server).set(database=name).render_as_string(hide_password=False)
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    engine.dispose()


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny BERT."""
    import tiny

    return tiny.make_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Llama that chats."""
    import tiny

    return tiny.make_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def topics_csv(tmp_path: Path) -> Path:
    """108 short questions with one of three topics."""
    import tiny

    return tiny.write_csv(tmp_path / "topics.csv")


@pytest.fixture
def chat_jsonl(tmp_path: Path) -> Path:
    """108 conversations of one question and one answer."""
    import tiny

    return tiny.write_chat(tmp_path / "chat.jsonl")
