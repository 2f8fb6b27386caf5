"""The tutorial's page is run: its file becomes a kind, and keeps what every adaptation keeps."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import trial
from conformance import test_every_adaptation as every
from conformance import test_kinds as kinds
from onsa.spec.errors import RecipeError
from onsa.spec.recipe import parse_recipe
from plugins import distribution

PAGE = Path(__file__).parents[2] / "docs" / "tutorial-adaptation.md"
KIND = "attention-only"
on_every_head = pytest.mark.parametrize("head", ["rows", "tokens"])


def parts(language: str) -> list[str]:
    """The page's pieces of code in a language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The page's file in a package of a third party, and the page's line in the conformance suite."""
    kind, promised = parts("python")
    package, module = "package_of_the_tutorial", "attention_only"
    group, name = re.findall(r'"(onsa\.\w+)"\]\n([\w-]+) = ', parts("toml")[0])[0]
    points = f"[{group}]\n{name} = {package}.{module}\n"
    monkeypatch.setattr(every, "PROMISED", dict(every.PROMISED))
    exec(promised, {"PROMISED": every.PROMISED})
    with distribution(tmp_path / "site", {f"{package}/{module}.py": kind}, points, monkeypatch):
        yield


@on_every_head
def test_the_kind_keeps_what_every_adaptation_keeps(head: str, installed: None, attempt: Any, tmp_path: Path) -> None:
    every.test_what_is_promised_trains_and_nothing_else(KIND, head, attempt)
    every.test_step_zero_equals_the_base(KIND, head, attempt)
    every.test_saved_reloaded_and_merged_it_says_the_same(KIND, head, attempt, tmp_path / "saved")
    every.test_micro_batches_do_not_change_the_gradient(KIND, head, attempt)
    (tmp_path / "resumed").mkdir()
    every.test_resuming_gives_the_same_bytes(KIND, head, attempt, tmp_path / "resumed")
    every.test_speed_passes_do_not_change_the_result(KIND, head, attempt)


def test_the_kind_keeps_what_kinds_of_every_axis_keep(installed: None) -> None:
    kinds.test_the_kind_is_named_by_its_file_and_says_what_it_is("adaptation", KIND)
    kinds.test_defaults_survive_the_way_through_a_recipe("adaptation", KIND)
    kinds.test_a_kind_is_frozen_and_knows_its_own_keys_only("adaptation", KIND)


def test_the_recipe_is_a_recipe(installed: None, attempt: Any) -> None:
    said = yaml.safe_load(parts("yaml")[0])
    recipe = parse_recipe(said)
    assert recipe.adaptation is not None and recipe.adaptation.kind == KIND
    with pytest.raises(RecipeError, match="skip"):
        parse_recipe({**said, "adaptation": {"kind": KIND, "skipp": 2}})
    whole, less = (
        trial.trained(trial.opened(attempt("rows", adaptation={"kind": KIND, "skip": skip}))) for skip in (0, 1)
    )
    assert set(less) < set(whole) and any("layer.0" in name for name in set(whole) - set(less))
