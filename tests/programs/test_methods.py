"""The table of methods: what it shows, the intervals behind it, and what a model forgets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks import forgetting
from benchmarks import methods as benchmark
from typer.testing import CliRunner

import trial
from onsa.app.cli import app
from onsa.models.heads import Head
from onsa.programs import methods
from onsa.programs.methods import Measured, Method, Setting, cells, read_measured
from onsa.programs.prepare import prepare
from onsa.serve.predictor import Predictor, load_run
from onsa.spec import registry
from onsa.spec.recipe import parse_recipe
from onsa.tasks.base import Outcome
from onsa.tasks.text_generation import TextGeneration


def row(name: str, value: float | None, **more: Any) -> Method:
    found = Method(
        method=name,
        refused=None,
        quality=None if value is None else [value, value - 0.05, value + 0.05],
        trainable=1000,
        share=0.125,
        peak_memory_bytes=700_000_000,
        seconds_an_epoch=1.25,
        saved_bytes=2_500_000,
        remembered={"general": 1.5},
        rate=3e-4,
        factor=3.0,
    )
    found.update(more)  # type: ignore[typeddict-item]
    return found


def table(lower_is_better: bool) -> Setting:
    untuned: dict[str, Any] = {"trainable": 0, "rate": None, "saved_bytes": None, "remembered": {"general": 1.0}}
    refused = {"code": "biases-missing", "values": {"adaptation": "bitfit"}}
    return Setting(
        name="toy",
        model="tiny",
        metric="loss",
        lower_is_better=lower_is_better,
        rows={"train": 8, "validation": 1, "test": 3},
        epochs=2,
        precision="fp32",
        seeds=3,
        methods=[
            row("base", 0.5, **untuned),
            row("small", 0.2),
            row("large", 0.9),
            row("bitfit", None, refused=refused, remembered={}),
        ],
    )


@pytest.mark.parametrize("lower_is_better", [True, False])
def test_the_best_comes_first_and_what_is_refused_last(lower_is_better: bool) -> None:
    heading, lines = cells(table(lower_is_better))
    order = ["small", "(not tuned)", "large"] if lower_is_better else ["large", "(not tuned)", "small"]
    assert [line[0] for line in lines] == [*order, "bitfit"]
    found = {line[0]: dict(zip(heading, line, strict=True)) for line in lines}
    assert (found["large"]["general text"], found["large"]["general ±"]) == ("1.500", "+0.500")
    assert (found["(not tuned)"]["general text"], found["(not tuned)"]["general ±"]) == ("1.000", "")
    assert found["small"]["parameters"] == "1,000" and found["small"]["trained"] == "12.50%"
    assert found["small"]["best rate"] == "3.0e-04"
    assert "no biases" in found["bitfit"]["loss [95 %]"] and not found["bitfit"]["parameters"]
    assert "other questions" not in heading, "a column without a figure is left out"
    assert len(benchmark.table_text(table(lower_is_better)).splitlines()) == 6
    assert all(f"| {name} |" in benchmark.markdown(measured(table(lower_is_better))) for name in ("small", "bitfit"))


def measured(*settings: Setting) -> Measured:
    names = ("python", "torch", "transformers", "peft", "onsa", "platform")
    versions: Any = dict.fromkeys(names, "1")
    return Measured(date="2026-01-01", command="x", minutes=1.0, versions=versions, settings=list(settings))


@pytest.mark.parametrize(("lang", "word"), [("en", "trained"), ("ja", "一般 ±")])
def test_the_terminal_shows_the_table(lang: str, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "methods.json"
    file.write_text(json.dumps(measured(table(True))), encoding="utf-8")
    monkeypatch.setattr(methods, "MEASURED", file)
    monkeypatch.setenv("ONSA_LANG", lang)
    monkeypatch.setenv("COLUMNS", "80")
    said = CliRunner().invoke(app, ["methods"])
    assert said.exit_code == 0 and "small" in said.output and word in said.output
    assert json.loads(CliRunner().invoke(app, ["methods", "--json"]).output) == read_measured()


def test_every_adaptation_is_in_the_table_that_comes_along() -> None:
    found = read_measured()
    kinds = {*registry.kinds("adaptation"), "base"} - {"peft"}
    for setting in found["settings"]:
        assert kinds | set(benchmark.VARIANTS) == {row["method"] for row in setting["methods"]}
        assert all(row["quality"] or row["refused"] for row in setting["methods"])
    assert benchmark.markdown(found) in benchmark.DOCS.read_text(encoding="utf-8")


def test_an_interval_is_of_the_mean_over_runs_on_the_same_rows() -> None:
    task = TextGeneration()
    runs = [Outcome(np.arange(40), np.random.default_rng(seed).gamma(2.0, size=40), np.ones(40)) for seed in range(3)]
    value, low, high = benchmark.interval(task, "loss", runs)
    mean_R = np.mean([run.loss_R for run in runs], axis=0)
    assert value == pytest.approx(float(mean_R.mean())) and low < value < high
    assert (high - low) / 2 == pytest.approx(1.96 * float(mean_R.std()) / 40**0.5, rel=0.15)
    assert benchmark.interval(task, "loss", [runs[0]] * 3) == pytest.approx(benchmark.interval(task, "loss", runs[:1]))


@pytest.mark.parametrize("head", list(Head))
def test_a_wrecked_model_has_forgotten(
    head: Head, tiny_bert: Path, tiny_llama: Path, topics_csv: Path, chat_jsonl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forgetting, "unrelated", lambda: (("what is rain like", "wet"), ("any soup", "no")))
    base, data = (tiny_bert, topics_csv) if head is Head.ROWS else (tiny_llama, chat_jsonl)
    recipe = {"model": str(base), "data": str(data), "engine": trial.ENGINE, "evaluate": {"max_new_tokens": 1}}
    model: Predictor = load_run(Path(), prepare(parse_recipe(recipe)).recipe, tuned=False)
    model = replace(model, max_length=64)
    before = forgetting.remembered(model, quick=True)
    assert set(before) == ({"general"} if head is Head.ROWS else {"general", "unrelated"})
    assert forgetting.remembered(model, quick=True) == before
    with torch.no_grad():
        for parameter in model.policy.network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    after = forgetting.remembered(model, quick=True)
    assert all(after[name] > before[name] for name in before)


def test_general_texts_are_prose() -> None:
    texts = forgetting.passages()
    assert len(texts) == forgetting.PASSAGES and len(set(texts)) == len(texts)
    assert all(len(text.split()) >= forgetting.WORDS for text in texts)
