"""What single kinds do beyond what all do: schedule-free's average, 8-bit moments, refusals, defaults."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file

import tiny
import trial
from onsa.optim.optimizers.base import Optimizer
from onsa.programs.prepare import Prepared
from onsa.spec.errors import Level, RecipeError
from onsa.spec.recipe import parse_recipe


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return tiny.write_csv(tmp_path / "topics.csv")


def loss_of(prepared: Prepared, session: Any) -> Any:
    return session.evaluate(prepared.examples["validation"], prepared.task).loss_R


def test_schedule_free_measures_and_deploys_its_average(tiny_bert: Path, rows: Path, tmp_path: Path) -> None:
    optimizer = {"kind": "schedule-free", "lr": 0.02, "betas": [0.7, 0.99]}
    prepared = trial.ready(tiny_bert, rows, adaptation="full", optimizer=optimizer)
    session: Any = trial.opened(prepared)
    trial.advance(prepared, session, 4)
    before, measured = trial.trained(session), loss_of(prepared, session)
    after = trial.trained(session)
    assert all(torch.equal(value, after[name]) for name, value in before.items()), "measuring moves nothing"
    session.save(tmp_path)
    deployed = cast(Optimizer, prepared.recipe.optimizer).deployed(session.optimizer)
    session.optimizer.eval()  # the library's own swap, to x
    for name, parameter in session.trainable.items():
        torch.testing.assert_close(deployed[parameter], parameter.detach(), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(load_file(tmp_path / "deployed.safetensors")[name], parameter.detach())
    assert any(not torch.equal(value, session.trainable[name]) for name, value in before.items())
    plain: Any = trial.opened(trial.ready(tiny_bert, rows, adaptation="full"))
    for name, parameter in session.trainable.items():
        plain.trainable[name].data = parameter.detach().clone()
    assert measured == pytest.approx(loss_of(prepared, plain), rel=1e-5)


def test_schedule_free_keeps_its_rate_unless_told(tiny_bert: Path, rows: Path) -> None:
    prepared = trial.ready(tiny_bert, rows, optimizer="schedule-free")
    assert prepared.recipe.schedule is not None and prepared.recipe.schedule.kind == "constant"
    assert not [problem for problem in prepared.problems if problem.key == "schedule"]
    prepared = trial.ready(tiny_bert, rows, optimizer="schedule-free", schedule="cosine")
    (problem,) = [problem for problem in prepared.problems if problem.key == "schedule"]
    assert (problem.code, problem.level) == ("schedule-unneeded", Level.WARNING)
    assert prepared.recipe.schedule is not None and prepared.recipe.schedule.kind == "cosine"


def test_a_schedule_that_watches_needs_something_to_watch(tiny_bert: Path, rows: Path) -> None:
    data = {"path": str(rows), "split": {"ratio": "9:0:1"}}
    values = {"model": str(tiny_bert), "data": data, "schedule": "plateau", "engine": trial.ENGINE}
    from onsa.programs.prepare import prepare

    with pytest.raises(RecipeError) as caught:
        prepare(parse_recipe(values))
    assert [problem.code for problem in caught.value.problems] == ["schedule-unwatched"]
    assert prepare(parse_recipe({**values, "schedule": "linear"})).total


def test_a_plateau_lowers_the_rate_of_a_run(tiny_bert: Path, rows: Path) -> None:
    schedule = {"kind": "plateau", "patience": 0, "shrink": 0.1, "warmup": 0}
    prepared = trial.ready(tiny_bert, rows, schedule=schedule, optimizer={"kind": "adamw", "lr": 0.01})
    session = trial.opened(prepared)
    first, at = trial.advance(prepared, session, 2)
    session.observe(1.0)
    session.observe(1.0)
    then, _ = trial.advance(prepared, session, 2, at)
    assert [step["lr"] for step in (*first, *then)] == pytest.approx([0.01, 0.01, 0.001, 0.001])


def test_nesterov_without_momentum_is_refused() -> None:
    optimizer = {"kind": "sgd", "momentum": 0.0, "nesterov": True}
    with pytest.raises(RecipeError) as caught:
        parse_recipe({"model": "m", "data": "d", "optimizer": optimizer})
    assert [problem.code for problem in caught.value.problems] == ["nesterov-still"]


def test_muon_moves_the_matrices_of_the_blocks_and_adamw_the_rest(tiny_bert: Path, rows: Path) -> None:
    prepared = trial.ready(tiny_bert, rows, adaptation="full", optimizer="muon")
    session: Any = trial.opened(prepared)
    trial.advance(prepared, session, 1)
    state = session.optimizer.state
    by_muon = {name for name, p in session.trainable.items() if "momentum_buffer" in state[p]}
    wanted = {name for name, p in session.trainable.items() if ".layer." in name and p.ndim == 2}
    assert by_muon == wanted and all("exp_avg" in state[p] for n, p in session.trainable.items() if n not in wanted)


def test_bitsandbytes_says_nothing_when_it_is_imported() -> None:
    code = "from onsa.spec.extras import require; require('bitsandbytes', 'low-bit', 'optimizer.kind')"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == ran.stderr == ""
