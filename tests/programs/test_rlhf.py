"""RLHF: three stages from one file, each a run that starts from the one before, and one report of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

import tiny
import trial
from onsa.programs.rlhf import Began, Staged, check_rlhf, quick, rlhf
from onsa.programs.train import Finished
from onsa.spec.component import Component
from onsa.spec.errors import OnsaError, RecipeError
from onsa.spec.rlhf import STAGES, laid_over, read_rlhf

SMALL = {"max_steps": 2, "batch_rows": 8, "precision": "fp32"}
ANSWERED = {"bootstrap": 100, "answers": 1, "max_new_tokens": 4}


def written(folder: Path, model: Path, **more: Any) -> Path:
    tiny.write_chat(folder / "chat.jsonl")
    tiny.write_pairs(folder / "pairs.jsonl")
    stage = {"train": SMALL, "engine": trial.ENGINE, "evaluate": ANSWERED}
    source = {"max_new_tokens": 4, "prompts": 8}
    values = {
        "model": str(model),
        "data": "chat.jsonl",
        "preferences": "pairs.jsonl",
        "sft": stage,
        "reward": {**stage, "optimizer": {"kind": "adamw", "lr": 0.01}},
        "ppo": {**stage, "source": source, "evaluate": {**ANSWERED, "judged": 4}},
        **more,
    }
    path = folder / "support.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def test_three_stages_end_in_one_report(tiny_llama: Path, tmp_path: Path, home: Path) -> None:
    given = read_rlhf(written(tmp_path, tiny_llama))
    check_rlhf(given)
    seen: list[Any] = []
    for step in rlhf(given):
        if isinstance(step, Began):
            *_, last = step.events
            assert isinstance(last, Finished)
            seen.append((step.stage, step.recipe, last.run))
        else:
            staged = step
    assert [stage for stage, _, _ in seen] == list(STAGES) and isinstance(staged, Staged)
    (_, first, imitated), (_, second, grader), (_, third, practised) = seen
    assert first.model.name == str(tiny_llama) and imitated.id in second.model.name == third.model.name
    assert (Path(second.model.name) / "model.safetensors").exists(), "the imitator is a whole model"
    (reward,) = cast(Any, third.source).reward
    assert reward.run == grader.id == third.evaluate.judge and cast(Component, third.objective).kind == "ppo"
    assert staged.runs == {"sft": imitated, "reward": grader, "ppo": practised}
    page = staged.report.read_text(encoding="utf-8")
    assert all(run.id in page for _, _, run in seen) and "PPO" in page and "win_rate" not in page
    assert json.dumps(staged.document()) and staged.verdict in page
    again = list(rlhf(given))
    assert [list(step.events)[-1].run.id for step in again if isinstance(step, Began)] == [run.id for _, _, run in seen]


def test_quick_is_quick_whatever_the_file_says(tiny_llama: Path, tmp_path: Path) -> None:
    given = quick(read_rlhf(written(tmp_path, tiny_llama, sft={"train": {"max_steps": 500}})))
    assert all((given.recipe(stage).train.max_steps or 99) <= 12 for stage in STAGES)
    assert given.recipe("ppo").train.batch_rows == 8, "what it does not say stays"


@pytest.mark.parametrize(
    ("changed", "code", "key"),
    [
        ({"ppo": {"train": {"epoch": 1}}}, "key-unknown", "ppo.train.epoch"),
        ({"sft": {"adaptation": "lorra"}}, "kind-unknown", "sft.adaptation.kind"),
        ({"reward": {"train": {"best": "nonsense"}}}, "metric-unknown", "reward.train.best"),
        ({"ppo": {"source": {"max_new_tokens": 5000}}}, "answers-over-context", "ppo.source.max_new_tokens"),
        ({"stages": 3}, "key-unknown", "stages"),
        ({"preferences": "nowhere.jsonl"}, "file-missing-near", None),
        ({"preferences": "chat.jsonl"}, "roles-unfilled", "reward.data.columns"),
    ],
)
def test_what_is_wrong_is_told_before_anything_trains(
    changed: dict[str, Any], code: str, key: str | None, tiny_llama: Path, tmp_path: Path, home: Path
) -> None:
    path = written(tmp_path, tiny_llama, **changed)
    with pytest.raises(OnsaError) as caught:
        check_rlhf(read_rlhf(path))
    problem = caught.value.problems[0]
    assert (problem.code, problem.key) == (code, key or problem.key)
    assert not (home / "runs").exists() or not list((home / "runs").iterdir())


def test_a_fault_of_the_file_has_its_line(tiny_llama: Path, tmp_path: Path) -> None:
    path = written(tmp_path, tiny_llama, ppo={"train": {"epoch": 1}})
    with pytest.raises(RecipeError) as caught:
        read_rlhf(path)
    (problem,) = caught.value.problems
    assert problem.file == str(path) and problem.line is not None
    assert "epoch: 1" in path.read_text().splitlines()[problem.line - 1]


def test_another_kind_takes_no_settings_of_the_one_before() -> None:
    usual = {"objective": {"kind": "ppo", "beta": 0.1}, "train": {"epochs": 1}}
    assert laid_over(usual, {"objective": {"kind": "grpo"}}) == {**usual, "objective": {"kind": "grpo"}}
    assert laid_over(usual, {"objective": {"clip": 0.3}})["objective"] == {"kind": "ppo", "beta": 0.1, "clip": 0.3}
    assert laid_over(usual, {"objective": "rloo", "seed": 3}) == {**usual, "objective": "rloo", "seed": 3}
