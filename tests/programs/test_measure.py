"""Measuring: one model in memory at a time, each answering once."""

from __future__ import annotations

import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest

import trial
from onsa.programs import measure
from onsa.serve.predictor import MODEL, Predictor, load_run


def test_the_tuned_model_is_gone_before_the_base_comes(
    tiny_llama: Path, chat_jsonl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = trial.ready(tiny_llama, chat_jsonl, evaluate={"answers": 2, "max_new_tokens": 3, "bootstrap": 100})
    folder = tmp_path / "run"
    (folder / MODEL).mkdir(parents=True)
    prepared.adaptation.save(trial.network(trial.opened(prepared)), prepared.tokenizer, folder / MODEL)
    networks: list[weakref.ref[Any]] = []
    answered: list[int] = []
    answers = Predictor.answers

    def load(*given: Any, **more: Any) -> Predictor:
        assert all(network() is None for network in networks)
        model = load_run(*given, **more)
        networks.append(weakref.ref(model.policy.network))
        return model

    def answer(self: Predictor, rows: Any) -> list[str]:
        answered.append(len(rows))
        return answers(self, rows)

    monkeypatch.setattr(measure, "load_run", load)
    monkeypatch.setattr(Predictor, "answers", answer)
    found = measure.measure(prepared, folder)
    assert (len(networks), answered, found.baseline) == (2, [2, 2], "untuned")
    assert [answer["tuned"] for answer in found.answers] == [answer["base"] for answer in found.answers]


def test_the_peak_of_a_process_is_its_own() -> None:
    held = bytearray(900_000_000)
    code = "from onsa.programs.measure import peak_memory; print(peak_memory('cpu'))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert len(held) <= measure.peak_memory("cpu") and int(said) < len(held)
