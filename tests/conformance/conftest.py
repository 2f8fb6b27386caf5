"""Bases and data that all kinds are tried on: a row head on a BERT, a token head on a Llama."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import pytest

import tiny
import trial
from onsa.programs.prepare import Prepared


class Try(Protocol):
    def __call__(self, head: str, dropout: bool = False, **sections: Any) -> Prepared: ...


@pytest.fixture(scope="session")
def attempt(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, tiny_llama: Path) -> Try:
    """A prepared run on the base of a head; the same sections give the same object."""
    folder = tmp_path_factory.mktemp("attempts")
    data = {"rows": tiny.write_csv(folder / "topics.csv"), "tokens": tiny.write_chat(folder / "chat.jsonl")}
    lively = {"rows": tiny_bert, "tokens": tiny_llama}
    still = {head: trial.still(base, folder / f"still-{head}") for head, base in lively.items()}

    known: dict[str, Prepared] = {}

    def ready(head: str, dropout: bool = False, **sections: Any) -> Prepared:
        key = repr((head, dropout, sections))
        if key not in known:
            known[key] = trial.ready((lively if dropout else still)[head], data[head], **sections)
        return known[key]

    return ready
