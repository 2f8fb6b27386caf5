"""Prepare: what only shows once a recipe has met its data."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from onsa.programs.prepare import Prepared, prepare
from onsa.spec.errors import OnsaError, RecipeError
from onsa.spec.recipe import parse_recipe


def ready(model: Path, data: Path, **sections: Any) -> Prepared:
    return prepare(parse_recipe({"model": str(model), "data": {"path": str(data)}, **sections}))


def test_a_run_stays_the_same_where_its_files_move(tiny_bert: Path, topics_csv: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(tiny_bert, moved / "base")
    shutil.copy(topics_csv, moved / "other.csv")
    first = ready(tiny_bert, topics_csv).identity
    assert ready(moved / "base", moved / "other.csv").identity == first
    assert ready(tiny_bert, topics_csv, seed=8).identity != first
    topics_csv.write_text(topics_csv.read_text() + "one more row,food\n")
    assert ready(tiny_bert, topics_csv).identity != first


def test_rows_longer_than_any_of_training_are_not_cut(tiny_bert: Path, tmp_path: Path) -> None:
    path = tmp_path / "sides.csv"
    rows = [f"rain {i},a,train\nsun {i},b,train" for i in range(20)]
    rows += ["wind,a,validation", "snow,b,validation", f"{'rain ' * 40},a,test", "sun,b,test"]
    path.write_text("\n".join(["text,label,side", *rows]) + "\n")
    split = {"path": str(path), "split": {"column": "side"}}
    prepared = prepare(parse_recipe({"model": str(tiny_bert), "data": split, "task": "text-classification"}))
    assert max(len(example.token_T) for example in prepared.examples["test"]) == 42
    assert not any(example.cut for example in prepared.examples["test"])


def test_a_split_that_leaves_one_class_to_train_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    path = tmp_path / "sides.csv"
    rows = [f"rain {i},a,train" for i in range(20)] + ["wind,b,validation", "snow,b,test"]
    path.write_text("\n".join(["text,label,side", *rows]) + "\n")
    with pytest.raises(OnsaError) as caught:
        prepare(parse_recipe({"model": str(tiny_bert), "data": {"path": str(path), "split": {"column": "side"}}}))
    assert [problem.code for problem in caught.value.problems] == ["class-single"]


def test_early_stopping_needs_validation_rows(tiny_bert: Path, topics_csv: Path) -> None:
    with pytest.raises(OnsaError, match="Early stopping watches the validation rows"):
        prepare(
            parse_recipe(
                {
                    "model": str(tiny_bert),
                    "data": {"path": str(topics_csv), "split": "8:0:2"},
                    "train": {"early_stop": {"patience": 2}},
                }
            )
        )


@pytest.mark.parametrize(
    ("given", "code"),
    [({"schedule": "plateau"}, "schedule-unwatched"), ({"train": {"early_stop": {"patience": 2}}}, "stop-unwatched")],
)
def test_what_is_watched_are_the_rows_that_are_there(
    given: dict[str, Any], code: str, tiny_bert: Path, tmp_path: Path
) -> None:
    """A column may name validation rows where the ratio deals none."""
    path = tmp_path / "sides.csv"
    rows = [f"rain {i},a,train\nsun {i},b,train" for i in range(20)] + ["wind,a,{side}", "snow,b,{side}"]
    rows += ["cloud,a,test", "storm,b,test"]
    data = {"path": str(path), "split": {"column": "side", "ratio": "8:0:2"}}
    for side, watched in (("validation", True), ("train", False)):
        path.write_text("\n".join(["text,label,side", *rows]).format(side=side) + "\n")
        try:
            prepared = prepare(parse_recipe({"model": str(tiny_bert), "data": data, **given}))
            assert watched and len(prepared.examples["validation"]) == 2
        except OnsaError as error:
            assert not watched and [problem.code for problem in error.problems] == [code]


@pytest.mark.parametrize(
    ("adaptation", "key"),
    [
        ({"kind": "prompt", "tokens": 63}, "adaptation.tokens"),
        ({"kind": "peft", "tuner": "prompt-tuning", "settings": {"num_virtual_tokens": 500}}, "adaptation.settings"),
    ],
)
def test_virtual_tokens_must_leave_place_for_a_row(
    adaptation: dict[str, Any], key: str, tiny_bert: Path, topics_csv: Path
) -> None:
    with pytest.raises(RecipeError) as caught:
        ready(tiny_bert, topics_csv, adaptation=adaptation)
    (problem,) = caught.value.problems
    assert (problem.code, problem.key) == ("tokens-over-context", key) and "64" in problem.what and "62" in problem.fix
    assert ready(tiny_bert, topics_csv, adaptation={"kind": "prompt", "tokens": 62}).recipe.train.max_length == 2


def test_given_columns_choose_among_the_tasks_that_know_them(tiny_llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("q,a\n" + "".join(f"what is number {i} about?,it is about {i % 7}\n" for i in range(60)))
    data = {"path": str(path), "columns": {"prompt": "q", "completion": "a"}}
    prepared = prepare(parse_recipe({"model": str(tiny_llama), "data": data, "task": "chat"}))
    assert prepared.task.kind == "chat"
    with pytest.raises(OnsaError, match="cannot be told"):
        prepare(parse_recipe({"model": str(tiny_llama), "data": {**data, "columns": {"quiz": "q"}}}))
