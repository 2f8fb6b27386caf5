"""Memory that runs out: the step begins anew in smaller parts, and stays the same step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import trial
from onsa.engine.batches import micro_batches
from onsa.models.batch import Batch, collate
from onsa.models.policy import Models
from onsa.objectives.base import Loss
from onsa.spec.errors import MachineError


@pytest.fixture
def session(tiny_llama: Path, chat_jsonl: Path) -> Any:
    def ready() -> tuple[Any, Any]:
        prepared = trial.ready(tiny_llama, chat_jsonl, adaptation="full", accel="off")
        return prepared, trial.opened(prepared)

    return ready


def short_of_memory(objective: Any, most: int, error: type[RuntimeError], asked: list[int]) -> Any:
    """An objective for which more rows than ``most`` are too many, which shows on the way back."""

    def loss(models: Models, batch: Batch) -> Loss:
        rows = len(batch.length_R)
        asked.append(rows)
        found: Loss = objective(models, batch)

        def refuse(_: torch.Tensor) -> None:
            if rows > most:
                raise error("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

        found.total.register_hook(refuse)
        return found

    return loss


@pytest.mark.parametrize("error", [RuntimeError, torch.OutOfMemoryError])
def test_a_step_goes_on_in_halves(error: type[RuntimeError], session: Any) -> None:
    prepared, plain = session()
    batches = micro_batches(prepared.examples["train"][:8], prepared.plan, 1)
    wanted = plain.forward_backward(batches, trial.objective(prepared))
    gradient = trial.gradients(plain)
    prepared, short = session()
    asked: list[int] = []
    found = short.forward_backward(batches, short_of_memory(trial.objective(prepared), 3, error, asked))
    assert found == pytest.approx(wanted, rel=1e-6) and trial.apart(gradient, trial.gradients(short)) <= 1e-6
    assert asked == [8, 4, 2, 2, 2, 2]
    short.step()
    asked.clear()
    short.forward_backward(batches, short_of_memory(trial.objective(prepared), 3, error, asked))
    assert asked == [2, 2, 2, 2], "the next step knows"


def test_one_row_that_is_too_large_is_told(session: Any) -> None:
    prepared, short = session()
    batches = micro_batches(prepared.examples["train"][:2], prepared.plan, 1)
    with pytest.raises(MachineError) as caught:
        short.forward_backward(batches, short_of_memory(trial.objective(prepared), 0, RuntimeError, []))
    assert [problem.code for problem in caught.value.problems] == ["memory-out"]


def test_other_errors_are_not_hidden(session: Any) -> None:
    prepared, short = session()

    def broken(models: Models, batch: Batch) -> Loss:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        short.forward_backward(micro_batches(prepared.examples["train"][:8], prepared.plan, 1), broken)


@pytest.mark.parametrize("head", ["rows", "tokens"])
def test_halves_are_the_rows_in_order(
    head: str, tiny_bert: Path, tiny_llama: Path, topics_csv: Path, chat_jsonl: Path
) -> None:
    base, data = (tiny_bert, topics_csv) if head == "rows" else (tiny_llama, chat_jsonl)
    examples = trial.ready(base, data, adaptation="full").examples["train"][:5]
    for half, wanted in zip(collate(examples).halves(), (collate(examples[:2]), collate(examples[2:])), strict=True):
        for name, value in vars(wanted).items():
            mine = getattr(half, name)
            assert torch.equal(mine, value) if isinstance(value, torch.Tensor) else mine == value, name
