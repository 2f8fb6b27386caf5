"""Several processes take the very steps of one."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch import distributed

import tiny
import trial
from onsa.engine import shards
from onsa.engine.batches import micro_batches
from onsa.engine.dealing import dealt, enough, filled
from onsa.engine.events import Saved
from onsa.engine.sessions.torchrun import Torchrun, TorchrunSession
from onsa.models.batch import Batch, collate
from onsa.models.policy import Models
from onsa.objectives.base import Loss
from onsa.objectives.cross_entropy import CrossEntropy
from onsa.programs.forecast import build, forecast, work
from onsa.programs.prepare import prepare
from onsa.programs.train import Finished, Opened, train
from onsa.spec.errors import MachineError, OnsaError, RecipeError, TrainingError
from onsa.spec.recipe import parse_recipe

TWO = {"kind": "torchrun", "processes": 2, "device": "cpu", "threads": 1}
SHARDED = {**TWO, "weights": "sharded"}
UPPER = {"adaptation": {"kind": "last-layers", "blocks": 1}, "accel": "auto"}
CASES = [
    ("rows", TWO, {"adaptation": "full"}),
    ("tokens", TWO, {"adaptation": "lora"}),
    ("tokens", TWO, UPPER),
    ("rows", SHARDED, {"adaptation": "full", "regulariser": ["l2-sp", "ema"]}),
    ("tokens", SHARDED, {"adaptation": "full", "optimizer": {"kind": "schedule-free", "eps": 1e-3}}),
    ("tokens", SHARDED, {"adaptation": "lora"}),
    ("tokens", SHARDED, {"adaptation": {"kind": "lora", "dora": True}, "train": {"precision": "bf16"}}),
    ("tokens", SHARDED, UPPER),
]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, tiny_llama: Path) -> Any:
    folder = tmp_path_factory.mktemp("ranks")
    data = {"rows": tiny.write_csv(folder / "topics.csv"), "tokens": tiny.write_chat(folder / "chat.jsonl")}
    lively = {"rows": tiny_bert, "tokens": tiny_llama}
    still = {head: trial.still(base, folder / head) for head, base in lively.items()}

    def ready(head: str, engine: Any, dropout: bool = False, **sections: Any) -> Any:
        # Three micro-batches for two processes: the one with fewer must take part all the same.
        train = {"max_steps": 24, "accumulate": 3, **sections.pop("train", {})}
        given = {"engine": engine, "optimizer": trial.CALM, **sections}
        return trial.ready((lively if dropout else still)[head], data[head], train=train, **given)

    return ready


@pytest.fixture
def opened() -> Iterator[Any]:
    """Opens sessions, and closes them however a test ends; of their processes none is left then."""
    sessions: list[Any] = []
    threads = torch.get_num_threads()

    def of(prepared: Any) -> Any:
        sessions.append(trial.opened(prepared))
        return sessions[-1]

    yield of
    for session in sessions:
        session.close()
    torch.set_num_threads(threads)
    assert not children() and not distributed.is_initialized()


def children() -> list[psutil.Process]:
    return [one for one in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(one.cmdline())]


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The distance of two sets of tensors, relative to the first's length."""
    assert {name: value.shape for name, value in one.items()} == {name: value.shape for name, value in other.items()}
    lines = [torch.cat([values[name].detach().float().flatten() for name in sorted(one)]) for values in (one, other)]
    return trial.apart(*lines)


def saved(session: Any, to: Path) -> Path:
    to.mkdir()
    session.save(to)
    return to


def close_to(found: list[dict[str, Any]], wanted: list[dict[str, Any]], within: float) -> None:
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.keys() == theirs.keys() and mine["rates"] == theirs["rates"]
        for name, value in theirs.items():
            if isinstance(value, float):
                assert mine[name] == pytest.approx(value, rel=within), name
        assert mine["metrics"] == pytest.approx(theirs["metrics"], rel=within)


@pytest.mark.parametrize(("head", "engine", "sections"), CASES, ids=str)
def test_the_steps_are_those_of_one_process(
    head: str, engine: Any, sections: Any, bases: Any, opened: Any, tmp_path: Path
) -> None:
    alone, together = (bases(head, kind, **sections) for kind in (trial.ENGINE, engine))
    one, two = opened(alone), opened(together)
    assert isinstance(two, TorchrunSession) and len(children()) == 1
    assert bool(two.first.work.plan.cuts) == (sections == UPPER), "what is kept of the rows takes part"
    within = 1e-2 if alone.recipe.train.precision == "bf16" else 1e-5
    wanted, at = trial.advance(alone, one, 4)
    found, _ = trial.advance(together, two, 4)
    close_to(found, wanted, within)
    assert apart(*(dict(session.network().named_parameters()) for session in (one, two))) <= within

    validation = alone.examples["validation"]
    mine, theirs = (session.evaluate(validation, alone.task) for session in (two, one))
    assert mine.row_R.tolist() == theirs.row_R.tolist()
    assert mine.loss_R == pytest.approx(theirs.loss_R, rel=10 * within)

    # The same files, from which each goes on where the other stood.
    sides = saved(one, tmp_path / "one"), saved(two, tmp_path / "two")
    names = sorted(path.name for path in sides[0].iterdir())
    assert names == sorted(path.name for path in sides[1].iterdir())
    for name in names:
        if name.endswith(".safetensors"):
            assert apart(*(load_file(side / name) for side in sides)) <= 10 * within
    two.restore(sides[0])
    assert np.array_equal(two.evaluate(validation, alone.task).loss_R, theirs.loss_R)
    one.restore(sides[1])
    close_to(trial.advance(together, two, 2, at)[0], trial.advance(alone, one, 2, at)[0], within)

    batches = micro_batches(validation, alone.plan, 1)
    (loss, gradient), (other, theirs_too) = (s.gradient(batches, trial.objective(alone)) for s in (one, two))
    assert other == pytest.approx(loss, rel=within) and apart(gradient, theirs_too) <= 10 * within
    two.restore(sides[0], optimizer=False)
    one.restore(sides[0], optimizer=False)
    assert apart(*(dict(session.network().named_parameters()) for session in (one, two))) == 0


@pytest.mark.parametrize("engine", [TWO, SHARDED], ids=str)
def test_rows_without_company_and_errors(engine: Any, bases: Any, opened: Any) -> None:
    """A process without rows takes part; Ctrl-C is for the first one; what stops a run is told as by one process."""
    prepared = bases("rows", engine, adaptation="full")
    session = opened(prepared)
    row, objective = collate(prepared.examples["train"][:1]), trial.objective(prepared)
    alone = opened(bases("rows", trial.ENGINE, adaptation="full"))
    for worker in session.crew.workers:
        os.kill(worker.process.pid, signal.SIGINT)
    mine, theirs = (one.forward_backward([row], objective) for one in (session, alone))
    assert mine == pytest.approx(theirs, rel=1e-6)
    assert session.step().grad_norm == pytest.approx(alone.step().grad_norm, rel=1e-5)
    with torch.no_grad():
        for parameter in session.first.trainable.values():
            parameter.fill_(float("nan"))
    with pytest.raises(TrainingError) as caught:
        session.forward_backward(micro_batches(prepared.examples["train"][:8], prepared.plan, 3), objective)
    assert caught.value.problems[0].code == "loss-not-finite"
    assert not children()


def test_dropout_falls_elsewhere_in_each_process_and_alike_each_time(bases: Any, opened: Any) -> None:
    """The draws are a function of seed, step and rank."""
    prepared = bases("rows", TWO, dropout=True, adaptation="full")
    batch, objective = collate(prepared.examples["train"][:4]), trial.objective(prepared)
    alone = opened(bases("rows", trial.ENGINE, dropout=True, adaptation="full"))
    first = alone.forward_backward([batch], objective)["loss"]
    found = []
    for _ in range(2):
        session = opened(prepared)  # which ends the one before
        both = session.forward_backward([batch, batch], objective)["loss"]
        session.step()
        found.append((both, session.forward_backward([batch, batch], objective)["loss"]))
    assert found[0] == found[1]
    assert 2 * found[0][0] - first != pytest.approx(first, rel=1e-4), "the second process draws as the first"
    assert found[0][1] != found[0][0]


def failing(models: Models, batch: Batch) -> Loss:
    """An objective with which nothing goes well, but in the first process."""
    if multiprocessing.parent_process() is not None:
        raise ValueError("the rows are too blue")
    return CrossEntropy()(models, batch)


@pytest.mark.parametrize("engine", [TWO, SHARDED], ids=str)
@pytest.mark.parametrize("how", ["killed", "failing"])
def test_a_process_that_ends_is_named_and_none_is_left(how: str, engine: Any, bases: Any, opened: Any) -> None:
    prepared = bases("rows", engine, adaptation="full")
    session = opened(prepared)
    batches = micro_batches(prepared.examples["train"][:8], prepared.plan, 2)
    folder = session.place.folder
    if how == "killed":
        session.forward_backward(batches, trial.objective(prepared))
        os.kill(session.crew.workers[0].process.pid, signal.SIGKILL)
    with pytest.raises(MachineError) as caught:
        session.forward_backward(batches, trial.objective(prepared) if how == "killed" else failing)
    said = str(caught.value)
    assert "Process 1" in said and (
        "SIGKILL" in said if how == "killed" else "ValueError: the rows are too blue" in said
    )
    assert not children() and not folder.exists()


SCRIPT = """
import sys
sys.path[:0] = {path!r}
if __name__ == "__main__":
    from pathlib import Path
    import trial
    prepared = trial.ready(Path({base!r}), Path({data!r}), adaptation="full", engine={engine!r})
    session = trial.opened(prepared)
    trial.advance(prepared, session, 1)
    print(*[worker.process.pid for worker in session.crew.workers], session.place.folder, flush=True)
    while True:
        trial.advance(prepared, session, 1)
"""


def test_when_the_first_is_killed_the_others_end(tiny_bert: Path, topics_csv: Path, tmp_path: Path) -> None:
    script, beside = tmp_path / "run.py", [str(Path(trial.__file__).parent)]
    script.write_text(SCRIPT.format(path=beside, base=str(tiny_bert), data=str(topics_csv), engine=SHARDED))
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid, folder = process.stdout.readline().split()
    assert psutil.pid_exists(int(pid))
    process.kill()
    process.wait()
    process.stdout.close()
    for _ in range(100):
        if not psutil.pid_exists(int(pid)) or psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.1)
    else:
        pytest.fail("a process is left")
    assert not Path(folder).exists()


@pytest.mark.parametrize(("first", "second"), [(SHARDED, trial.ENGINE), (trial.ENGINE, SHARDED)], ids=str)
def test_a_run_goes_on_under_another_engine(
    first: Any, second: Any, tiny_llama: Path, chat_jsonl: Path, home: Path
) -> None:
    """From preflight to report: paused in the middle, the same run goes on."""

    def recipe(engine: Any) -> Any:
        values = {
            "model": str(tiny_llama),
            "data": str(chat_jsonl),
            "adaptation": {"kind": "lora", "rank": 4},
            "train": {**trial.TRAIN, "max_steps": 4, "save_steps": 2},
            "evaluate": {"bootstrap": 100, "baseline": False, "answers": 0},
        }
        return parse_recipe({**values, "engine": engine})

    begun = train(recipe(first))
    for event in begun:
        if isinstance(event, Opened):
            folder = event.run.folder
        if isinstance(event, Saved):
            break
    begun.close()  # type: ignore[attr-defined]
    assert not children()
    *told, last = train(recipe(second))
    assert isinstance(told[0], Opened) and told[0].resumed and isinstance(last, Finished)
    assert last.run.folder == folder and (folder / "model" / "adapter_model.safetensors").exists()
    assert not children() and not distributed.is_initialized()


def test_one_session_at_a_time(bases: Any, opened: Any) -> None:
    before = torch.get_num_threads()
    one = opened(bases("rows", {**TWO, "threads": 3}, adaptation="full"))
    assert torch.get_num_threads() == 3
    two = opened(bases("tokens", TWO, adaptation="full"))
    assert not one.crew.workers and len(children()) == 1 and torch.get_num_threads() == 1
    one.close()
    assert len(children()) == 1
    two.close()
    assert torch.get_num_threads() == before
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(MachineError) as caught:
            opened(bases("tokens", TWO, adaptation="full"))
        assert caught.value.problems[0].code == "processes-taken"
    finally:
        distributed.destroy_process_group()


def test_what_cannot_be_is_refused(bases: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal(head: str = "rows", **sections: Any) -> str:
        with pytest.raises(OnsaError) as caught:
            bases(head, SHARDED, **{"adaptation": "full", **sections})
        return caught.value.problems[0].code

    assert refusal(optimizer="muon") == refusal(optimizer="adamw-8bit") == "shards-optimizer"
    assert refusal(adaptation="gradual-unfreeze") == "shards-adaptation"
    quantised = bases("tokens", SHARDED, adaptation="lora").recipe
    quantised = quantised.model_copy(update={"model": quantised.model.model_copy(update={"quantize": "nf4"})})
    with pytest.raises(OnsaError) as caught:
        prepare(quantised)
    assert caught.value.problems[0].code == "shards-quantised"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(MachineError) as few:
        Torchrun(processes=2, device="cuda").place()
    assert few.value.problems[0].code == "gpus-few"
    monkeypatch.setattr(distributed, "is_available", lambda: False)
    with pytest.raises(MachineError) as unavailable:
        Torchrun().place()
    assert unavailable.value.problems[0].code == "processes-unavailable"


def test_networks_that_cannot_be_held_in_parts(bases: Any) -> None:
    adaptive = work(build(bases("tokens", TWO, adaptation={"kind": "peft", "tuner": "adalora"})))
    shared = work(build(bases("tokens", TWO, adaptation="full")))
    layers: Any = shared.network.model.layers  # type: ignore[union-attr]
    layers[1].mlp.up_proj.weight = layers[0].mlp.up_proj.weight
    flat = replace(shared, network=torch.nn.Linear(2, 2))
    codes = {"shards-adaptation": adaptive, "shards-shared": shared, "shards-without-blocks": flat}
    for code, given in codes.items():
        with pytest.raises(RecipeError) as caught:
            shards.check(given)
        assert caught.value.problems[0].code == code


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_rows_are_dealt_evenly_and_once(count: int, bases: Any) -> None:
    examples = bases("tokens", trial.ENGINE, adaptation="full").examples["train"][:7]
    parts = dealt(enough([collate(examples[:4]), collate(examples[4:])], count), count)
    assert len(parts) == count
    rows = sorted(row for part in parts for batch in part for row in batch.row_R)
    assert rows == sorted(example.row for example in examples)
    assert sum(1 for part in parts if part) == min(count, 7)
    full = filled(parts)
    assert len({len(part) for part in full}) == 1
    assert sum(float(batch.weight_M.sum()) for part in full for batch in part) == sum(e.supervised for e in examples)


def test_memory_is_forecast_for_all_processes(bases: Any) -> None:
    """What trains is in every process, or a part of it in each; the rest, and what Python takes, as it is."""
    one, two, parts = (forecast(build(bases("rows", e, adaptation="full"))) for e in (trial.ENGINE, TWO, SHARDED))
    assert (two.training, two.weights, two.runtime) == (2 * one.training, 2 * one.weights, 2 * one.runtime)
    assert one.training < parts.training < two.training
    one, two, parts = (forecast(build(bases("tokens", e, adaptation="lora"))) for e in (trial.ENGINE, TWO, SHARDED))
    assert two.training == 2 * one.training and parts.training == one.training
    assert two.weights - one.weights == 4 * one.trainable and parts.weights == one.weights


@pytest.mark.gpu
@pytest.mark.parametrize("weights", ["replicated", "sharded"])
def test_over_nccl_as_over_gloo(weights: str, bases: Any, opened: Any, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    count = min(2, torch.cuda.device_count())
    one = bases("tokens", trial.ENGINE, adaptation="lora")
    two = bases("tokens", {"kind": "torchrun", "processes": count, "weights": weights}, adaptation="lora")
    session = opened(two)
    wanted, _ = trial.advance(one, opened(one), 3)
    found, at = trial.advance(two, session, 3)
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    session.restore(saved(session, tmp_path / "saved"))
    trial.advance(two, session, 1, at)
    assert all(value.device.type == "cpu" for value in load_file(tmp_path / "saved" / "trainable.safetensors").values())
