"""Encoded rows on disk are those that were encoded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trial
from onsa.engine import tokenised as module
from onsa.engine.tokenised import Tokenised, tokenised
from onsa.programs.prepare import Prepared
from onsa.store.home import home

NAMES = ("token_T", "weight_T", "type_T")


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows count as many."""
    monkeypatch.setattr(module, "FEWEST", 2)


def ready(head: str, folders: tuple[Path, Path, Path, Path], **more: Any) -> Prepared:
    bert, llama, topics, chat = folders
    model, data = (bert, topics) if head == "rows" else (llama, chat)
    return trial.ready(model, data, **{"adaptation": "full", "accel": "auto", **more})


@pytest.fixture
def folders(tiny_bert: Path, tiny_llama: Path, topics_csv: Path, chat_jsonl: Path) -> tuple[Path, Path, Path, Path]:
    return tiny_bert, tiny_llama, topics_csv, chat_jsonl


def same(found: Any, wanted: Any) -> None:
    assert len(found) == len(wanted)
    for mine, theirs in zip(found, wanted, strict=True):
        for name in NAMES:
            one, other = getattr(mine, name), getattr(theirs, name)
            assert (one is None) == (other is None) and (one is None or np.array_equal(one, other)), name
        assert np.array_equal(mine.target, theirs.target)
        assert (mine.row, mine.cut, mine.supervised) == (theirs.row, theirs.cut, theirs.supervised)


def kept() -> list[Path]:
    return sorted((home() / "cache" / "tokens").glob("[!.]*"))


@pytest.mark.parametrize("head", ["rows", "tokens"])
@pytest.mark.parametrize("more", [{}, {"train": {"max_length": 40}}], ids=str)
def test_what_is_read_is_what_was_encoded(head: str, more: Any, folders: Any, many: None) -> None:
    wanted = ready(head, folders, accel="off", **more)
    assert not kept()
    for _ in range(2):  # written, then read
        found = ready(head, folders, **more)
        assert isinstance(found.examples["train"], Tokenised)
        for side, examples in wanted.examples.items():
            same(found.examples[side], examples)
        assert found.identity.split()[-1] and found.total == wanted.total


@pytest.mark.parametrize("problem", ["multi-label", "regression"])
def test_targets_of_every_kind(problem: str, tiny_bert: Path, tmp_path: Path, many: None) -> None:
    lines = [
        "text,label",
        *(f"row number {i},{i / 7 if problem == 'regression' else 'a;b' if i % 2 else 'a'}" for i in range(60)),
    ]
    (tmp_path / "d.csv").write_text("\n".join(lines) + "\n")
    task = {"kind": "text-classification", "problem": problem}
    wanted = trial.ready(tiny_bert, tmp_path / "d.csv", task=task, adaptation="full", accel="off")
    found = trial.ready(tiny_bert, tmp_path / "d.csv", task=task, adaptation="full", accel="auto")
    same(found.examples["train"], wanted.examples["train"])


def test_several_processes_give_the_same(folders: Any, many: None, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = ready("tokens", folders, accel="off")
    rows = prepared.dataset.train
    monkeypatch.setattr(module, "PARALLEL", 2)
    monkeypatch.setattr(module, "PART", 7)
    monkeypatch.setattr(module.os, "cpu_count", lambda: 2)
    same(tokenised(prepared.task, rows, prepared.tokenizer, 200), prepared.examples["train"])


def test_another_length_template_or_row_is_another_key(folders: Any, many: None) -> None:
    ready("tokens", folders)
    first = len(kept())
    ready("tokens", folders)
    assert len(kept()) == first
    ready("tokens", folders, task={"kind": "chat", "system": "be brief"})
    second = len(kept())
    assert second > first
    ready("tokens", folders, train={"max_length": 40})
    assert len(kept()) > second


def test_a_damaged_file_is_made_anew(folders: Any, many: None) -> None:
    ready("rows", folders)
    for folder in kept():
        data = bytearray((folder / "token_N.bin").read_bytes())
        data[0] ^= 1
        (folder / "token_N.bin").write_bytes(data)
    same(ready("rows", folders).examples["train"], ready("rows", folders, accel="off").examples["train"])


def test_few_rows_are_kept_in_memory(folders: Any) -> None:
    assert isinstance(ready("rows", folders).examples["train"], list) and not kept()


def test_places_are_those_of_a_list(folders: Any, many: None) -> None:
    found = ready("rows", folders).examples["train"]
    whole = list(found)
    assert len(whole) == len(found)
    same(found[-3:], whole[-3:])
    same([found[-1]], whole[-1:])
    with pytest.raises(IndexError):
        found[len(found)]
