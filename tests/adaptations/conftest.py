"""Short runs without dropout on the two tiny bases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import trial
from onsa.programs.prepare import Prepared


@pytest.fixture
def rows(tiny_bert: Path, topics_csv: Path, tmp_path: Path) -> Any:
    """Classification on the BERT, under an adaptation."""
    base = trial.still(tiny_bert, tmp_path / "still-bert")

    def ready(adaptation: Any, **sections: Any) -> Prepared:
        return trial.ready(base, topics_csv, adaptation=adaptation, **sections)

    return ready


@pytest.fixture
def talks(tiny_llama: Path, chat_jsonl: Path, tmp_path: Path) -> Any:
    """Conversations on the Llama, whose output layer shares the weight of the input embeddings."""
    base = trial.still(tiny_llama, tmp_path / "still-llama")

    def ready(adaptation: Any, **sections: Any) -> Prepared:
        return trial.ready(base, chat_jsonl, adaptation=adaptation, **sections)

    return ready
