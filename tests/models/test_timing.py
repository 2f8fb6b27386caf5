"""What was measured once is written down, under everything that it depends on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from onsa.models.timing import remembered


def test_ways_take_turns_and_are_measured_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ONSA_HOME", str(tmp_path))
    done: list[str] = []

    def job(way: str) -> Callable[[], None]:
        return lambda: done.append(way)

    first = remembered("things", "of fp32", ("one", "two"), job, 3)
    assert done == ["one", "two"] * 3 and set(first) == {"one", "two"} and min(first.values()) > 0
    assert remembered("things", "of fp32", ("one", "two"), job, 3) == first and len(done) == 6
    remembered("things", "of bf16", ("one", "two"), job, 1)
    remembered("others", "of fp32", ("one", "two"), job, 1)
    remembered("things", "of fp32", ("one", "two", "three"), job, 1)  # another version knows more ways
    assert Counter(done) == {"one": 6, "two": 6, "three": 1}
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    remembered("things", "of fp32", ("one", "two", "three"), job, 1)
    torch.set_num_threads(before)
    assert Counter(done) == {"one": 7, "two": 7, "three": 2}
