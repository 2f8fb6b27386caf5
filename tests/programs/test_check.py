"""Check: what training would refuse is refused, also where nothing is timed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tiny
import trial
from onsa.programs.check import check
from onsa.programs.train import train
from onsa.spec.errors import RecipeError
from onsa.spec.recipe import Recipe, parse_recipe
from onsa.store.home import home

# What the network shows only once a session holds it, by the code.
REFUSED: dict[str, dict[str, Any]] = {
    "r-drop-without-dropout": {"regulariser": ["r-drop"]},
    "dropout-there": {"regulariser": ["dropout"], "model": "lively"},
    "regulariser-asleep": {"regulariser": ["dropout"], "adaptation": "head"},
    "l2-sp-without-base": {"regulariser": ["l2-sp"], "adaptation": "lora"},
    "neftune-soft-prompt": {"regulariser": ["neftune"], "adaptation": "prompt"},
}


@pytest.fixture
def recipe_of(tmp_path: Path, tiny_bert: Path) -> Any:
    """A recipe with some sections, on a base without dropout, or on the ``lively`` one with it."""
    bases = {"still": trial.still(tiny_bert, tmp_path / "bert"), "lively": tiny_bert}
    data = tiny.write_csv(tmp_path / "topics.csv")

    def recipe_with(model: str = "still", **sections: Any) -> Recipe:
        return parse_recipe({"model": str(bases[model]), "data": str(data), "engine": trial.ENGINE, **sections})

    return recipe_with


@pytest.mark.parametrize("code", REFUSED)
def test_what_a_session_refuses_is_told_without_timing(code: str, recipe_of: Any) -> None:
    recipe = recipe_of(**REFUSED[code])
    for ask in (lambda: check(recipe, timing=False), lambda: list(train(recipe))):
        with pytest.raises(RecipeError) as caught:
            ask()
        (problem,) = caught.value.problems
        assert (problem.code, problem.key) == (code, "regulariser")


def test_only_timing_takes_steps(recipe_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(regulariser=["dropout"])
    assert check(recipe, timing=True).forecast.seconds
    monkeypatch.setattr("onsa.engine.sessions.local.LocalSession.step", lambda self: pytest.fail("a step"))
    assert check(recipe, timing=False).forecast.seconds is None
    assert not list((home() / "runs").iterdir())
