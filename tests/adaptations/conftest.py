"""Short runs without dropout on the two tiny bases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import trial
from onsa.programs.prepare import Prepared


def under(base: Path, data: Path) -> Any:
    """A prepared run on some base and data, by its adaptation."""

    def ready(adaptation: Any, **sections: Any) -> Prepared:
        return trial.ready(base, data, adaptation=adaptation, **sections)

    return ready


@pytest.fixture
def rows(tiny_bert: Path, topics_csv: Path, tmp_path: Path) -> Any:
    """Classification on the BERT, under an adaptation."""
    return under(trial.still(tiny_bert, tmp_path / "still-bert"), topics_csv)


@pytest.fixture
def talks(tiny_llama: Path, chat_jsonl: Path, tmp_path: Path) -> Any:
    """Conversations on the Llama, whose output layer shares the weight of the input embeddings."""
    return under(trial.still(tiny_llama, tmp_path / "still-llama"), chat_jsonl)
