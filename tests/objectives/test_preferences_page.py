"""The page about preferences names every objective that learns from them with its fields, and every shape of rows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import cast

import yaml

from onsa.objectives.base import Objective, Role
from onsa.spec import registry
from onsa.spec.component import Form
from onsa.spec.recipe import parse_recipe
from onsa.tasks.preference import CHOSEN, Preference

PAGE = (Path(__file__).parents[2] / "docs" / "preferences.md").read_text(encoding="utf-8")
COMPARED = {Form.RANKED, Form.PREFERRED, Form.JUDGED}


def rows(title: str) -> list[list[str]]:
    """A table's rows under a title."""
    section = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    return cells[2:]


def test_its_recipe_can_be_read() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    objective = cast(Objective, parse_recipe(yaml.safe_load(block)).objective)
    assert objective.kind == "dpo"


def test_every_objective_stands_in_its_table_with_its_fields() -> None:
    kinds = {name: cast(type[Objective], registry.load("objective", name)) for name in registry.kinds("objective")}
    wanted = {name: kind for name, kind in kinds.items() if kind.reads & COMPARED}
    table = {row[0].strip("`"): row for row in rows("The objectives")}
    assert set(table) == set(wanted) == set(Preference.objectives)
    for name, kind in wanted.items():
        _, _, learnt_from, reference, fields = table[name]
        assert (reference == "yes") == (Role.REFERENCE in kind.uses), name
        assert ("single answers" in learnt_from) == (Form.JUDGED in kind.reads), name
        named = set(re.findall(r"`([^`]+)`", re.sub(r"\([^)]*\)", "", fields)))
        assert named == set(kind.model_fields), name


def test_every_shape_of_rows_stands_there() -> None:
    text = " ".join(cell for row in rows("The rows") for cell in row)
    named = set(re.findall(r"`([a-z_]+)", text))
    assert {"preferred_output", "preferred_completion"} <= named & set(CHOSEN)
    assert set(Preference.roles) - {"system", "tools"} <= named
