"""What every kind on every axis keeps, wherever it comes from: its name, its words, its way in and out of a recipe."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from pydantic import ValidationError

import trial
from onsa.spec import registry
from onsa.spec.component import Component
from onsa.spec.errors import RecipeError
from onsa.spec.recipe import parse_recipe
from plugins import distribution

KINDS = [(axis, kind) for axis in registry.AXES for kind in registry.kinds(axis)]
every_kind = pytest.mark.parametrize(("axis", "kind"), KINDS, ids=lambda name: name)


def test_every_file_of_an_axis_is_a_kind() -> None:
    for axis, package in registry.AXES.items():
        folder = Path(next(iter(importlib.import_module(package).__path__)))
        files = {path.stem.replace("_", "-") for path in folder.glob("*.py")} - {"--init--", "base"}
        assert files <= set(registry.kinds(axis)), axis


@every_kind
def test_the_kind_is_named_by_its_file_and_says_what_it_is(axis: str, kind: str) -> None:
    found = registry.load(axis, kind)
    assert found.kind == kind
    if ":" not in registry.kinds(axis)[kind]:
        assert found.__module__.rpartition(".")[2].replace("_", "-") == kind
    assert found.__doc__ and found.__doc__ != Component.__doc__
    undocumented = [name for name in found.model_fields if f"{name}" not in documented(found)]
    assert not undocumented


def documented(found: type[Component]) -> str:
    return "\n".join(cls.__doc__ or "" for cls in found.__mro__ if issubclass(cls, Component))


@every_kind
def test_defaults_survive_the_way_through_a_recipe(axis: str, kind: str) -> None:
    needed = trial.needed(axis, kind)
    component = registry.load(axis, kind).model_validate(needed)
    recipe = parse_recipe({"model": "m", "data": "d", **trial.placed(axis, component)})
    assert recipe.document() == parse_recipe(recipe.document()).document()
    again = parse_recipe(yaml.safe_load(recipe.dump()))
    found = again
    for name in registry.key_of(axis).split("."):
        found = getattr(found, name)
    kept = found[0] if isinstance(found, tuple) else found
    assert again == recipe and type(kept) is type(component) and kept.kind == kind
    given = {"kind": kind, **needed} if needed else kind
    assert parse_recipe({"model": "m", "data": "d", **trial.placed(axis, given)}) == recipe


@every_kind
def test_a_kind_is_frozen_and_knows_its_own_keys_only(axis: str, kind: str) -> None:
    component = registry.load(axis, kind).model_validate(trial.needed(axis, kind))
    for name in type(component).model_fields:
        with pytest.raises(ValidationError):
            setattr(component, name, None)
    with pytest.raises(RecipeError) as caught:
        given = {"kind": kind, **trial.needed(axis, kind), "nonsense": 1}
        parse_recipe({"model": "m", "data": "d", **trial.placed(axis, given)})
    (problem,) = caught.value.problems
    assert (problem.code, problem.key) == ("key-unknown", f"{registry.key_of(axis)}.nonsense")


def test_a_kind_that_is_not_there_is_refused_with_the_nearest() -> None:
    for axis in registry.AXES:
        with pytest.raises(RecipeError) as caught:
            parse_recipe({"model": "m", "data": "d", **trial.placed(axis, cast(Any, "nonsense"))})
        assert caught.value.problems[0].code == "kind-unknown"
        assert next(iter(registry.kinds(axis))) in str(caught.value)


PLUGIN = '''
"""Halves."""

from onsa.optim.schedules.base import Schedule


class Halves(Schedule):
    """The rate is halved every so often.

    parts: pieces of the run.
    """

    kind = "halves"
    parts: int = 2

    def after_warmup(self, step, total, seen):
        return 0.5 ** int(step / total * self.parts)
'''


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A distribution of a third party, installed: one kind of its own, and one that takes a built-in's name."""
    points = "[onsa.schedule]\nhalves = halves_of_a_third_party\nlinear = halves_of_a_third_party:Halves\n"
    with distribution(tmp_path / "site", {"halves_of_a_third_party.py": PLUGIN}, points, monkeypatch):
        yield


def test_third_parties_add_kinds_through_entry_points(plugin: None, attempt: Any) -> None:
    assert "halves" in registry.kinds("schedule")
    assert registry.load("schedule", "linear").__module__ == "onsa.optim.schedules.linear", "built-ins stay"
    halves = {"kind": "halves", "warmup": 0, "parts": 3}
    prepared = attempt("rows", schedule=halves, optimizer={"kind": "adamw", "lr": 0.1})
    assert parse_recipe(yaml.safe_load(prepared.recipe.dump())) == prepared.recipe
    said, _ = trial.advance(prepared, trial.opened(prepared), 6)
    assert [step["lr"] for step in said] == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.025, 0.025])
    with pytest.raises(RecipeError, match="halves"):
        parse_recipe({"model": "m", "data": "d", "schedule": "halve"})
    with pytest.raises(RecipeError, match="parts"):
        parse_recipe({"model": "m", "data": "d", "schedule": {"kind": "halves", "part": 3}})


def test_without_the_distribution_there_is_no_such_kind() -> None:
    assert "halves" not in registry.kinds("schedule")
