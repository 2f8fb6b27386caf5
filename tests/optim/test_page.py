"""The page about learning rates names every kind, with the figures that the code has, and its recipe can be read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import yaml

from onsa.spec import registry
from onsa.spec.recipe import parse_recipe

PAGE = (Path(__file__).parents[2] / "docs" / "learning-rates.md").read_text(encoding="utf-8")


def rows(title: str) -> dict[str, list[str]]:
    """A table's rows under a title, by the kind in the first column."""
    section = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    return {re.findall(r"`([^`]+)`", row[0])[0]: row for row in cells[2:]}


def test_its_recipe_can_be_read() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert parse_recipe(yaml.safe_load(block)).schedule is not None


def test_every_schedule_stands_in_its_table_with_its_keys() -> None:
    table = rows("Schedules")
    assert set(table) == set(registry.kinds("schedule"))
    for kind, row in table.items():
        keys = set(registry.load("schedule", kind).model_fields) - {"warmup"}
        assert set(re.findall(r"`([^`]+)`", row[2])) == keys, kind


def test_every_optimizer_stands_in_its_table_with_its_figures() -> None:
    table = rows("Optimizers")
    assert set(table) == set(registry.kinds("optimizer"))
    for kind, row in table.items():
        found = cast(Any, registry.load("optimizer", kind))
        assert row[1].startswith(f"{found.state_bytes} byte" if found.state_bytes else "next to nothing"), kind
        assert row[2].split()[0] == f"{found.times:g}", kind
