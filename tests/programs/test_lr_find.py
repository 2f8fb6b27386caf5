"""The range test: a sweep whose shape is known, relative rates, refusals, and nothing left behind but its plot."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from typer.testing import CliRunner

import tiny
import trial
from onsa.app.cli import app
from onsa.evaluate.report.rates import sweep_page
from onsa.optim.optimizers.base import Optimizer
from onsa.programs.lr_find import Rising, Sweep, lr_find, suggest
from onsa.programs.prepare import prepare
from onsa.spec.errors import MachineError, RecipeError, TrainingError
from onsa.spec.recipe import Recipe, parse_recipe, read_recipe
from onsa.store.home import home


@pytest.fixture
def values(tmp_path: Path, tiny_bert: Path) -> dict[str, Any]:
    model = trial.still(tiny_bert, tmp_path / "bert")
    data = tiny.write_csv(tmp_path / "topics.csv")
    return {"model": str(model), "data": str(data), "engine": trial.ENGINE, "train": {"batch_rows": 16}}


@pytest.fixture
def recipe(values: dict[str, Any]) -> Recipe:
    return parse_recipe({**values, "adaptation": "full"})


def test_the_rate_rises_by_a_constant_factor() -> None:
    rising = Rising(low=1e-3, high=1e3)
    factors = [rising.factor(step, 7) for step in range(7)]
    assert factors == pytest.approx([10.0**power for power in range(-3, 4)])


def test_a_curve_of_known_shape() -> None:
    """A fall around 1e-3, a floor until 1e-1, then a rise."""
    rates = np.logspace(-6, 1, 141)
    smooth = 2 - np.tanh(np.log10(rates) + 3) + 5 * np.maximum(0, np.log10(rates) + 1) ** 2
    steepest, tenth = suggest(list(rates), list(smooth))
    assert steepest == pytest.approx(1e-3, rel=0.2)
    assert tenth == pytest.approx(rates[smooth.argmin()] / 10)
    for flat in (np.linspace(1, 2, 141), np.full(141, 1.0)):
        with pytest.raises(TrainingError) as caught:
            suggest(list(rates), list(flat))
        assert caught.value.problems[0].code == "lr-find-flat"


def test_a_sweep_learns_and_then_diverges(recipe: Recipe) -> None:
    found = lr_find(recipe, Sweep(1e-6, 100.0, 80))
    assert found.rates[0] == pytest.approx(1e-6) and found.diverged and len(found.rates) < 80
    ratio = found.rates[1] / found.rates[0]
    assert ratio == pytest.approx((100 / 1e-6) ** (1 / 79))
    assert found.smooth[0] == found.losses[0], "the mean is corrected for its start"
    assert 1e-6 < found.suggestion < 0.1
    assert lr_find(recipe, Sweep(1e-6, 100.0, 80)) == found, "the same seed sweeps the same"


@pytest.mark.parametrize("adaptation", ["full", "lora"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "schedule-free"])
def test_groups_keep_their_relative_rates(
    values: dict[str, Any], adaptation: str, optimizer: str, monkeypatch: Any
) -> None:
    from onsa.engine.sessions.local import LocalSession

    told: list[dict[str, float]] = []
    step = LocalSession.step

    def heard(self: LocalSession) -> Any:
        moved = step(self)
        told.append({**moved.rates, "": moved.lr})
        return moved

    monkeypatch.setattr(LocalSession, "step", heard)
    settings = {"kind": optimizer, "lr": 1e-3, "lr_new": 1e-2, "layer_decay": 0.5}
    with suppress(TrainingError):  # over so few steps the loss need not fall
        lr_find(parse_recipe({**values, "adaptation": adaptation, "optimizer": settings}), Sweep(1e-6, 1e-2, 20))
    assert len(told) == 20
    for rates in (told[0], told[-1]):
        assert rates["new"] == pytest.approx(10 * rates[""]) and rates["block 1"] == pytest.approx(rates[""] / 4)
    assert told[0][""] == pytest.approx(1e-6) and told[-1][""] == pytest.approx(1e-2)


@pytest.mark.parametrize("adaptation", ["full", "head"])
@pytest.mark.parametrize("optimizer", [{}, {"lr": 2e-4, "lr_new": 3e-3}])
def test_the_suggestion_gives_the_rates_of_the_sweep(
    values: dict[str, Any], adaptation: str, optimizer: dict[str, float], tmp_path: Path
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(parse_recipe({**values, "adaptation": adaptation, "optimizer": optimizer}).dump())
    swept = cast(Optimizer, prepare(read_recipe(file)).recipe.optimizer)
    found = lr_find(read_recipe(file), Sweep(1e-5, 100.0, 60))
    taken = cast(Optimizer, prepare(read_recipe(file, found.overrides)).recipe.optimizer)
    assert taken.lr == found.suggestion and taken.lr_new and swept.lr and swept.lr_new
    assert taken.lr_new / taken.lr == pytest.approx(swept.lr_new / swept.lr, rel=1e-5)
    assert all(f"--set {override}" in sweep_page(found.model, found.document()) for override in found.overrides)


def test_a_rate_of_what_is_new_is_given_where_something_new_trains(
    values: dict[str, Any], tiny_llama: Path, tmp_path: Path
) -> None:
    chat = {**values, "model": str(tiny_llama), "data": str(tiny.write_chat(tmp_path / "chat.jsonl"))}
    for given in (chat, {**values, "adaptation": {"kind": "full", "freeze": ["classifier"]}}):
        found = lr_find(parse_recipe(given), Sweep(1e-5, 100.0, 40))
        assert found.overrides == [f"optimizer.lr={found.suggestion:g}"] and found.ratio_new is None


@pytest.mark.parametrize("low", [1e-3, 0.0, -1.0])
def test_an_empty_range_is_refused(low: float, recipe: Recipe) -> None:
    with pytest.raises(RecipeError) as caught:
        lr_find(recipe, Sweep(low, 1e-3 if low > 0 else 1.0, 50))
    assert caught.value.problems[0].code == "lr-range-empty"


@pytest.mark.parametrize("lang", ["en", "ja"])
def test_the_command_leaves_a_plot_and_no_run(lang: str, recipe: Recipe, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("ONSA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ONSA_LANG", lang)
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.dump())
    options = ["lr-find", str(file), "--range", "1e-6", "100", "--steps", "60"]
    told = CliRunner().invoke(app, options)
    assert told.exit_code == 0, told.output
    page = (tmp_path / "recipe.lr-find.html").read_text()
    assert f'<html lang="{lang}">' in page and "<svg" in page and "http" not in page and "<script" not in page
    assert "--set optimizer.lr=" in told.output and str(tmp_path / "recipe.lr-find.html") in told.output
    said = CliRunner().invoke(app, [*options, "--json", "--out", str(tmp_path / "other.html")])
    document = json.loads(said.stdout)
    assert document["set"][0] == f"optimizer.lr={document['suggestion']:g}" and len(document["set"]) == 2
    assert " ".join(f"--set {override}" for override in document["set"]) in told.output
    assert document["plot"] == str(tmp_path / "other.html") and (tmp_path / "other.html").exists()
    assert not (home() / "onsa.db").exists() and not list((home() / "runs").iterdir())


def test_the_plots_place_is_looked_at_before_the_sweep(recipe: Recipe, tmp_path: Path, monkeypatch: Any) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.dump())
    options = ["lr-find", str(file), "--range", "1e-6", "100", "--steps", "40", "--out"]
    told = CliRunner().invoke(app, [*options, str(tmp_path / "new" / "plots" / "x.html")])
    assert told.exit_code == 0 and (tmp_path / "new" / "plots" / "x.html").is_file()
    monkeypatch.setattr("onsa.programs.lr_find.prepare", lambda *given: pytest.fail("the sweep has begun"))
    for place, code in ((tmp_path, "plot-is-folder"), (file / "x.html", "folder-unwritable")):
        error = CliRunner().invoke(app, [*options, str(place)]).exception
        assert isinstance(error, MachineError) and error.problems[0].code == code
