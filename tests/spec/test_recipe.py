"""The recipe: its short forms, its overrides, its errors all at once and in their lines, and its way back to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from onsa.spec.errors import Problem, RecipeError
from onsa.spec.recipe import Recipe, parse_recipe, read_recipe

LONG = {
    "model": {"name": "m"},
    "data": {"path": "d.csv", "split": {"ratio": [6, 1, 3]}},
    "task": {"kind": "chat"},
    "adaptation": {"kind": "lora"},
    "accel": {"mode": "off"},
}
SHORT = {
    "model": "m",
    "data": {"path": "d.csv", "split": "6:1:3"},
    "task": "chat",
    "adaptation": "lora",
    "accel": "off",
}


def written(folder: Path, text: str, *overrides: str) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return read_recipe(path, overrides)


def refused(folder: Path, text: str, *overrides: str) -> list[Problem]:
    with pytest.raises(RecipeError) as caught:
        written(folder, text, *overrides)
    assert all(problem.what and problem.fix for problem in caught.value.problems)
    return list(caught.value.problems)


def test_short_forms_say_the_same() -> None:
    assert parse_recipe(SHORT) == parse_recipe(LONG)
    assert parse_recipe({**SHORT, "accel": False}) == parse_recipe(LONG), "YAML 1.1 reads off as false"
    assert parse_recipe({"model": "m", "data": "d.csv"}).data.path == "d.csv"


def test_python_builds_the_same_recipe() -> None:
    from onsa.adaptations.lora import Lora
    from onsa.spec.sections import Data, Model

    built = Recipe(model=Model(name="m"), data=Data(path="d"), adaptation=Lora(rank=4))
    assert built == parse_recipe({"model": "m", "data": "d", "adaptation": {"kind": "lora", "rank": 4}})


OVERRIDES: list[tuple[str, tuple[str, ...], Any]] = [
    ("train.epochs=4", ("train", "epochs"), 4),
    ("adaptation.rank=16", ("adaptation", "rank"), 16),
    ("adaptation=full", ("adaptation", "kind"), "full"),
    ("adaptation.kind=full", ("adaptation", "kind"), "full"),
    ("data.split=1:1:1", ("data", "split", "ratio"), (1, 1, 1)),
    ("data.split.stratify=true", ("data", "split", "stratify"), True),
    ("model.head_dropout=0.2", ("model", "head_dropout"), 0.2),
    ("model=other", ("model", "name"), "other"),
    ("data.columns={text: a, label: b}", ("data", "columns"), {"text": "a", "label": "b"}),
    ("data.columns.text=a", ("data", "columns"), {"text": "a"}),
    ("accel.skip=[like-lengths]", ("accel", "skip"), ("like-lengths",)),
    ("train.early_stop.patience=2", ("train", "early_stop", "patience"), 2),
    ("train.clip=null", ("train", "clip"), None),
    (" seed = 11", ("seed",), 11),
]


@pytest.mark.parametrize(("override", "place", "value"), OVERRIDES, ids=[override for override, *_ in OVERRIDES])
def test_overrides_are_laid_over_short_and_long_forms(
    override: str, place: tuple[str, ...], value: Any, tmp_path: Path
) -> None:
    for form in (SHORT, LONG):
        found: Any = written(tmp_path, yaml.safe_dump(form), override)
        for name in place:
            found = getattr(found, name)
        assert found == value
        rest = written(tmp_path, yaml.safe_dump(form)).document()
        changed = written(tmp_path, yaml.safe_dump(form), override).document()
        assert {name for name in rest if rest[name] != changed[name]} == {place[0]}, "and nothing else"


def test_a_later_override_wins(tmp_path: Path) -> None:
    assert written(tmp_path, yaml.safe_dump(SHORT), "seed=1", "seed=2").seed == 2


@pytest.mark.parametrize("override", ["seed", "=3", ".seed=3", "train..epochs=3", ""])
def test_an_override_that_says_nothing_is_refused(override: str, tmp_path: Path) -> None:
    (problem,) = refused(tmp_path, yaml.safe_dump(SHORT), override)
    assert problem.code == "override-malformed"


def test_an_override_that_is_wrong_is_named(tmp_path: Path) -> None:
    (problem,) = refused(tmp_path, yaml.safe_dump(SHORT), "adaptation.rnak=16")
    assert problem.code == "key-unknown" and problem.key == "adaptation.rnak" and "rank" in problem.fix
    assert "adaptation.rnak=16" in str(problem)


FAULTY = """model: m
data:
  path: d.csv
  splti: 8:1:1
task: chat
adaptation:
  kind: lora
  rank: 0
  rnak: 8
optimizer: adamv
train:
  epochs: many
  early_stop: {patience: 0}
sede: 7
"""


def test_all_problems_come_at_once_and_in_their_lines(tmp_path: Path) -> None:
    found = {problem.key: problem for problem in refused(tmp_path, FAULTY)}
    assert {key: problem.line for key, problem in found.items()} == {
        "data.splti": 4,
        "adaptation.rank": 8,
        "adaptation.rnak": 9,
        "optimizer.kind": 10,
        "train.epochs": 12,
        "train.early_stop.patience": 13,
        "sede": 14,
    }
    assert {problem.file for problem in found.values()} == {str(tmp_path / "recipe.yaml")}
    nearest = {"data.splti": "split", "adaptation.rnak": "rank", "optimizer.kind": "adamw", "sede": "seed"}
    assert all(f"'{near}'" in found[key].fix for key, near in nearest.items())


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    assert {(p.code, p.key) for p in refused(tmp_path, "seed: 7\n")} == {
        ("key-missing", "model"),
        ("key-missing", "data"),
    }
    assert {(p.code, p.key) for p in refused(tmp_path, "model: m\ndata: {format: csv}\n")} == {
        ("key-missing", "data.path")
    }


@pytest.mark.parametrize(
    ("text", "line"), [("model: [m\n", 2), ("- model\n", 1), ("just text\n", 1), ("", 1), ("model: m\n\tdata: d\n", 2)]
)
def test_what_is_no_recipe_is_refused(text: str, line: int, tmp_path: Path) -> None:
    (problem,) = refused(tmp_path, text)
    assert problem.code in ("recipe-not-yaml", "recipe-not-mapping") and problem.line == line


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        read_recipe(tmp_path / "none.yaml")
    assert caught.value.problems[0].code == "recipe-missing"


def test_a_dump_reads_back_to_the_same_recipe(tmp_path: Path) -> None:
    full = {
        **LONG,
        "schedule": {"kind": "cosine", "floor": 0.1},
        "train": {"early_stop": {"patience": 2}, "clip": None},
    }
    recipe = parse_recipe({**full, "data": {"path": "質問.csv", "columns": {"text": "本文"}, "delimiter": "\t"}})
    text = recipe.dump()
    assert parse_recipe(yaml.safe_load(text)) == recipe and "質問.csv" in text
    assert parse_recipe(yaml.safe_load(text)).dump() == text


def test_a_recipe_does_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse_recipe(SHORT).seed = 8  # type: ignore[misc]


def test_the_identity_is_that_of_recipe_data_and_base() -> None:
    recipe = parse_recipe(SHORT)
    same = parse_recipe(LONG).identity("data", "base")
    others = [
        recipe.identity("other", "base"),
        recipe.identity("data", "other"),
        parse_recipe({**SHORT, "seed": 8}).identity("data", "base"),
        parse_recipe({**SHORT, "adaptation": {"kind": "lora", "rank": 9}}).identity("data", "base"),
    ]
    assert recipe.identity("data", "base") == same and len({same, *others}) == 5
    assert len(same) == 64


def test_paths_are_relative_to_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    for folder in (home / "base", home / "rows", elsewhere):
        folder.mkdir(parents=True)
    (home / "rows" / "a.csv").write_text("text,label\n")
    monkeypatch.chdir(elsewhere)
    text = "model: base\ndata: {path: rows/a.csv, validation: rows/later.csv, test: /far/t.csv}\n"
    recipe = written(home, text)
    assert recipe.model.name == str(home / "base") and recipe.data.path == str(home / "rows" / "a.csv")
    assert recipe.data.validation == str(home / "rows" / "later.csv"), "a name with a known suffix is a file"
    assert recipe.data.test == "/far/t.csv"


def test_hub_ids_stay(tmp_path: Path) -> None:
    recipe = written(tmp_path, "model: owner/base\ndata: {path: owner/rows}\n")
    assert (recipe.model.name, recipe.data.path) == ("owner/base", "owner/rows")
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "rows.csv").write_text("text\n")
    said = written(tmp_path, "model: minilm-l6\ndata: {path: owner/rows.csv, format: hub}\n")
    assert (said.model.name, said.data.path) == ("minilm-l6", "owner/rows.csv")
