"""The page about rewards names every objective and every reward with its fields, and its recipes can be read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import cast

import pytest
import yaml

from onsa.objectives.base import Objective, Rewarded
from onsa.spec import registry
from onsa.spec.component import Component
from onsa.spec.recipe import parse_recipe
from onsa.spec.rlhf import STAGES, read_rlhf
from onsa.tasks.prompt import Prompt

PAGE = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")
RECIPE, STAGED = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


def table(title: str) -> dict[str, list[str]]:
    """The rows of a table under a title, by their first cell."""
    section = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    return {row[0].strip("`"): row for row in cells[2:]}


def fields(cell: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", cell))


def test_its_recipe_can_be_read() -> None:
    recipe = parse_recipe(yaml.safe_load(RECIPE))
    assert cast(Objective, recipe.objective).kind == "grpo" and cast(Component, recipe.source).kind == "rollouts"


def test_its_stages_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "support.yaml").write_text(STAGED, encoding="utf-8")
    found = read_rlhf(tmp_path / "support.yaml")
    assert found.recipe("sft").train.epochs == 2
    assert all(found.recipe(stage).model.name == "smollm2-135m" for stage in STAGES)


def test_every_objective_stands_in_its_table_with_its_fields() -> None:
    found = {name: cast(type[Objective], registry.load("objective", name)) for name in registry.kinds("objective")}
    wanted = {name: kind for name, kind in found.items() if issubclass(kind, Rewarded)}
    rows = table("The objectives")
    assert set(rows) == set(wanted) == set(Prompt.objectives)
    for name, kind in wanted.items():
        assert fields(rows[name][3]) == set(kind.model_fields), name


@pytest.mark.parametrize("name", list(registry.kinds("reward")))
def test_every_reward_stands_in_its_table_with_its_fields(name: str) -> None:
    row = table("The rewards")[name]
    assert fields(row[2]) == set(registry.load("reward", name).model_fields) - {"weight", "name"}
