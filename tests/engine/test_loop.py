"""The loop: its events, breaking it off and going on to the same bytes, and losses that are not numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import trial
from onsa.engine import checkpoint, loop
from onsa.engine.checkpoint import Progress
from onsa.engine.events import Begun, Evaluated, Event, Saved, Stepped
from onsa.models.batch import Batch
from onsa.models.policy import Models
from onsa.objectives.base import Loss, Objective
from onsa.objectives.cross_entropy import CrossEntropy
from onsa.programs.prepare import Prepared
from onsa.spec.component import Form
from onsa.spec.errors import TrainingError

TRAIN = {"batch_rows": 8, "max_steps": 8, "eval_steps": 2, "save_steps": 3, "early_stop": {"patience": 2}}


@pytest.fixture
def prepared(tiny_bert: Path, topics_csv: Path) -> Prepared:
    """Eight steps with dropout in body and update."""
    lora = {"kind": "lora", "rank": 2, "dropout": 0.2}
    return trial.ready(tiny_bert, topics_csv, adaptation=lora, train=TRAIN)


@pytest.fixture
def begun(prepared: Prepared, tmp_path: Path) -> Callable[..., Any]:
    """The loop on a fresh session, over the checkpoints of a folder."""

    def begin(folder: str = "run", **more: Any) -> Any:
        return loop.run(trial.job(prepared, trial.opened(prepared), tmp_path / folder, **more))

    return begin


def kept(folder: Path) -> tuple[dict[str, bytes], Progress]:
    """A checkpoint's bytes, and its progress without what the clock says."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    progress = checkpoint.progress_of(folder)
    assert progress.stepped is not None
    own = {name: found for name, found in files.items() if name not in ("manifest.json", "progress.json")}
    return own, replace(progress, stepped=replace(progress.stepped, seconds=0.0))


def steps(events: list[Event]) -> list[Any]:
    """Steps and evaluations without what the clock says."""
    return [
        (e.step, e.epoch, e.loss, e.lr, e.grad_norm, e.metrics) if isinstance(e, Stepped) else e
        for e in events
        if isinstance(e, Stepped | Evaluated)
    ]


def test_the_events_of_a_run(begun: Callable[..., Any], prepared: Prepared, tmp_path: Path) -> None:
    events = list(begun())
    assert events[0] == Begun(0, 8) and prepared.total == 8
    stepped = [event for event in events if isinstance(event, Stepped)]
    assert [event.step for event in stepped] == list(range(1, 9))
    assert all(event.tokens > event.trained == 8 and event.loss > 0 and event.grad_norm > 0 for event in stepped)
    assert [event.lr for event in stepped] != [stepped[0].lr] * 8
    evaluated = [event for event in events if isinstance(event, Evaluated)]
    assert [event.step for event in evaluated] == [2, 4, 6, 8]
    assert set(evaluated[0].metrics) == set(prepared.task.measures)
    best, stale = float("inf"), 0
    for event in evaluated:
        stale = 0 if event.metrics["loss"] < best else stale + 1
        best = min(best, event.metrics["loss"])
        assert (event.best, event.stale) == (stale == 0, stale)
    saved = [event for event in events if isinstance(event, Saved)]
    assert [event.step for event in saved] == sorted({3, 6, 8} | {e.step for e in evaluated if e.best})
    assert all(event.folder == tmp_path / "run" / f"step-{event.step:07d}" for event in saved)
    left = checkpoint.folders(tmp_path / "run")
    assert len(left) in (2, 3) and all(checkpoint.verified(folder) for folder in left)


def test_staleness_counts_evaluations_that_are_not_better(begun: Callable[..., Any], prepared: Prepared) -> None:
    told = iter([1.0, 2.0, 0.5, 0.5])
    task = prepared.task

    class Told(type(task)):  # type: ignore[misc]
        def metrics(self, outcome: Any) -> dict[str, float]:
            return {**super().metrics(outcome), "loss": next(told)}

    found = [event for event in begun(examiner=Told(**dict(task))) if isinstance(event, Evaluated)]
    assert [(event.best, event.stale) for event in found] == [(True, 0), (False, 1), (True, 0), (False, 1)]


@pytest.mark.parametrize("at", range(1, 8))
def test_breaking_off_and_going_on_gives_the_same_bytes(at: int, begun: Callable[..., Any], tmp_path: Path) -> None:
    straight = list(begun("straight"))
    first = []
    events = begun("broken")
    for event in events:
        first.append(event)
        if isinstance(event, Stepped) and event.step == at:
            break
    events.close()
    found, _ = checkpoint.latest(tmp_path / "broken")
    assert found is not None and found.name == f"step-{at:07d}", "the place is kept at that very step"
    rest = list(begun("broken"))
    assert rest[0] == Begun(at, 8) and rest[1] == next(e for e in first if isinstance(e, Stepped) and e.step == at)
    # The last step is told again, with its evaluation: its reader may have gone before it heard all of it.
    before = [event for event in first if isinstance(event, Stepped | Evaluated) and event.step < at]
    assert steps([*before, *rest]) == steps(straight)
    ends = [tmp_path / name / "step-0000008" for name in ("straight", "broken")]
    assert kept(ends[0]) == kept(ends[1]), "weights, moments and the state of early stopping"


def test_a_broken_checkpoint_is_passed_over_and_named(begun: Callable[..., Any], tmp_path: Path) -> None:
    straight = list(begun("straight"))
    events = begun("run")
    for event in events:
        if isinstance(event, Stepped) and event.step == 7:
            break
    events.close()
    newest = tmp_path / "run" / "step-0000007"
    (newest / "trainable.safetensors").write_bytes(b"torn")
    rest = list(begun("run"))
    assert rest[0] == Begun(6, 8, ("step-0000007",))
    assert steps(rest)[-3:] == steps(straight)[-3:]


def test_a_finished_run_has_nothing_left_to_do(begun: Callable[..., Any]) -> None:
    list(begun())
    assert [type(event) for event in begun()] == [Begun, Stepped, Evaluated], "but to tell its end again"


class Poison(Objective):
    """Cross-entropy until its third call."""

    kind: ClassVar[str] = "poison"
    reads: ClassVar[Form] = Form.LABELLED
    calls: ClassVar[list[tuple[int, ...]]] = []
    into: str = "loss"

    def __call__(self, models: Models, batch: Batch) -> Loss:
        self.calls.append(batch.row_R)
        found = CrossEntropy()(models, batch)
        if len(self.calls) < 3:
            return found
        if self.into == "loss":
            return Loss(found.total * float("nan"), found.weight)
        return Loss(Burst.apply(found.total), found.weight)


class Burst(torch.autograd.Function):
    """A finite value with a gradient that is not."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0] * float("inf")


@pytest.mark.parametrize(("into", "code"), [("loss", "loss-not-finite"), ("gradient", "gradient-not-finite")])
def test_a_loss_that_is_no_number_stops_the_run(
    into: str, code: str, prepared: Prepared, tiny_bert: Path, topics_csv: Path, tmp_path: Path
) -> None:
    Poison.calls.clear()
    train = {**TRAIN, "save_steps": 2}
    plain = trial.ready(tiny_bert, topics_csv, train=train, accel="off")
    events: list[Event] = []
    with pytest.raises(TrainingError) as caught:
        for event in loop.run(trial.job(plain, trial.opened(plain), tmp_path / "run", objective=Poison(into=into))):
            events.append(event)
    (problem,) = caught.value.problems
    assert problem.code == code and problem.values["step"] == 3 and "step 3" in problem.what and problem.fix
    if into == "loss":
        assert problem.values["rows"] == ", ".join(map(str, Poison.calls[2])) and problem.values["rows"] in problem.what
    assert [event.step for event in events if isinstance(event, Stepped)] == [1, 2]
    found, broken = checkpoint.latest(tmp_path / "run")
    assert found is not None and found.name == "step-0000002" and not broken
    rest = list(loop.run(trial.job(plain, trial.opened(plain), tmp_path / "run")))
    assert rest[0] == Begun(2, 8) and [e.step for e in rest if isinstance(e, Stepped)] == list(range(2, 9))


def test_without_validation_rows_nothing_is_evaluated(begun: Callable[..., Any], tmp_path: Path) -> None:
    events = list(begun(validation=[]))
    assert not [event for event in events if isinstance(event, Evaluated)]
    assert [event.step for event in events if isinstance(event, Saved)] == [3, 6, 8]
