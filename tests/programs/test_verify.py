"""``accel: verify``: a first step that differs stops the run before it begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import trial
from onsa.models.policy import Policy
from onsa.programs.train import Finished, train
from onsa.programs.verify import verify
from onsa.spec.errors import TrainingError
from onsa.spec.recipe import parse_recipe
from onsa.store.runs import Store


def recipe(model: Path, data: Path, **more: Any) -> Any:
    values = {"model": str(model), "data": str(data), "engine": trial.ENGINE, "train": trial.TRAIN, "accel": "verify"}
    return parse_recipe({**values, **more})


@pytest.mark.parametrize("adaptation", ["full", "lora", "last-layers"])
def test_passes_agree_with_the_plain_path_also_under_dropout(
    adaptation: str, tiny_bert: Path, topics_csv: Path
) -> None:
    prepared = trial.ready(tiny_bert, topics_csv, adaptation=adaptation, accel="verify")
    verify(prepared)
    assert any(decision.applied for decision in prepared.plan.decisions)


def test_a_verified_run_trains(tiny_llama: Path, chat_jsonl: Path) -> None:
    *_, last = train(recipe(tiny_llama, chat_jsonl, evaluate={"answers": 0}))
    assert isinstance(last, Finished)


def test_a_difference_stops_the_run(tiny_llama: Path, chat_jsonl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Policy.told

    def wrong(self: Policy, *given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        logprob_M, best_M = real(self, *given)
        return logprob_M * (1.01 if self.head_rows else 1.0), best_M

    monkeypatch.setattr(Policy, "told", wrong)
    with pytest.raises(TrainingError) as caught:
        list(train(recipe(tiny_llama, chat_jsonl)))
    assert [problem.code for problem in caught.value.problems] == ["accel-differs"]
    assert "chunked-head" in str(caught.value)
    with Store() as store:
        assert store.list() == ()
