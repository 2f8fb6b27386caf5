"""What every engine keeps: it says where it works, opens a session, and the session knows its five verbs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

import trial
from onsa.engine.batches import micro_batches
from onsa.engine.sessions.base import Engine
from onsa.spec import registry

every_kind = pytest.mark.parametrize("kind", list(registry.kinds("engine")))


@every_kind
@pytest.mark.parametrize("head", ["rows", "tokens"])
def test_a_session_knows_its_verbs(kind: str, head: str, attempt: Any, tmp_path: Path) -> None:
    prepared = attempt(head, engine=kind)
    assert cast(Engine, registry.load("engine", kind)()).place() in ("cpu", "cuda")
    session = trial.opened(prepared)
    examples, validation = prepared.examples["train"][:8], prepared.examples["validation"]
    batches = micro_batches(examples, prepared.plan, 2)
    means = session.forward_backward(batches, trial.objective(prepared))
    assert 0 < means["loss"] < 10
    before = trial.trained(session)
    moved = session.step()
    assert (
        moved.lr > 0
        and moved.grad_norm > 0
        and set(moved.rates) == {"new", "base"} - ({"new"} if head == "tokens" else set())
    )
    assert any(not torch.equal(value, before[name]) for name, value in trial.trained(session).items())
    outcome = session.evaluate(validation, prepared.task)
    assert outcome.row_R.tolist() == sorted(example.row for example in validation)
    assert np.isfinite(outcome.loss_R).all() and outcome.weight_R.min() >= 1
    session.save(tmp_path)
    kept = trial.trained(session)
    session.forward_backward(batches, trial.objective(prepared))
    session.step()
    session.restore(tmp_path)
    assert all(torch.equal(value, kept[name]) for name, value in trial.trained(session).items())
    again = session.evaluate(validation, prepared.task)
    assert np.array_equal(again.loss_R, outcome.loss_R)
    session.close()


@every_kind
def test_the_mean_loss_is_that_of_the_task(kind: str, attempt: Any) -> None:
    """What the loop shows for training and for validation is one measure."""
    for head in ("rows", "tokens"):
        prepared = attempt(head, engine=kind)
        session, validation = trial.opened(prepared), prepared.examples["validation"]
        measured = prepared.task.metrics(session.evaluate(validation, prepared.task))["loss"]
        batches = micro_batches(validation, prepared.plan, 1)
        assert session.forward_backward(batches, trial.objective(prepared))["loss"] == pytest.approx(measured, rel=1e-5)
        session.close()
