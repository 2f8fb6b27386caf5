"""Data sets: columns, sides, rows that are left out, and the hash."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from onsa.data.dataset import load_dataset, load_rows, nfkc
from onsa.data.table import Dataset
from onsa.spec.errors import DataError, Problem
from onsa.spec.sections import Data, Split

Write = Callable[[str, "str | bytes"], str]
HUNDRED = [("text number %d" % number, "ab"[number % 2]) for number in range(100)]  # noqa: UP031


def csv(rows: list[tuple[str, ...]], header: str = "text,label") -> str:
    return "\n".join([header, *(",".join(row) for row in rows)]) + "\n"


def refused(data: Data, task: Any) -> list[Problem]:
    with pytest.raises(DataError) as caught:
        load_dataset(data, task)
    assert all(problem.what and problem.fix for problem in caught.value.problems)
    return list(caught.value.problems)


def texts(dataset: Dataset) -> dict[str, list[str]]:
    return {side: [row.values["text"] for row in rows] for side, rows in dataset.sides.items()}


def test_a_file_is_read_and_dealt(write: Write, task: Any) -> None:
    dataset = load_dataset(Data(path=write("a.csv", csv(HUNDRED))), task)
    assert sum(map(len, dataset.sides.values())) == 100 and all(dataset.sides.values())
    assert dataset.train[0].values.keys() == {"text", "label"}
    assert dataset.removed == {} and len(dataset.sha256) == 64
    again = load_dataset(Data(path=write("b.csv", csv(HUNDRED))), task)
    assert again.sha256 == dataset.sha256, "the hash is of the content, wherever it lies"
    other = load_dataset(Data(path=write("b.csv", csv(HUNDRED[:-1]))), task)
    assert other.sha256 != dataset.sha256
    assert (
        load_dataset(Data(path=write("b.csv", csv(HUNDRED)), split=Split(ratio=(6, 2, 2))), task).sha256
        != dataset.sha256
    )


def test_columns_find_their_roles(write: Write, task: Any) -> None:
    path = write("a.csv", csv(HUNDRED, "review,stars"))
    data = Data(path=path, columns={"text": "review", "label": "stars"}, language="en")
    dataset = load_dataset(data, task)
    assert dataset.train[0].values.keys() == {"text", "label"} and dataset.language == "en"
    (problem,) = refused(data.model_copy(update={"columns": {"text": "reviw", "label": "stars"}}), task)
    assert (problem.code, problem.file, problem.key) == ("column-missing", path, "data.columns.text")
    assert problem.values == {"value": "reviw", "near": "review", "choices": "review, stars"}
    assert [problem.code for problem in refused(Data(path=path), task)] == ["role-missing"] * 2
    (problem,) = refused(
        data.model_copy(update={"columns": {"text": "review", "label": "stars", "nte": "stars"}}), task
    )
    assert (problem.code, problem.values["near"]) == ("role-unknown", "note")


def test_nfkc_reaches_into_values(write: Write, task: Any) -> None:
    assert nfkc({"Ａ": ["ﾃｽﾄ", {"x": "①"}, 3, None]}) == {"Ａ": ["テスト", {"x": "1"}, 3, None]}
    path = write("a.csv", csv([(f"ＡＢＣ {number}", "a") for number in range(30)]))
    dataset = load_dataset(Data(path=path, normalise="nfkc"), task)
    assert all(row.values["text"].startswith("ABC ") for row in dataset.train)
    assert load_dataset(Data(path=path), task).train[0].values["text"].startswith("ＡＢＣ")


def test_unusable_rows_are_recorded(write: Write, task: Any) -> None:
    path = write("a.csv", csv([*HUNDRED, ("  ", "a"), ("", "b")]))
    dataset = load_dataset(Data(path=path), task)
    assert dataset.removed == {"prompt-incomplete": 2}
    assert len(load_rows(Data(path=path), task)["train"]) == 102


def test_the_split_column_decides(write: Write, task: Any) -> None:
    rows = [("a", "x", "train"), ("b", "x", "Dev"), ("c", "x", "test"), ("d", "y", " valid ")]
    split = Split(column="part")
    data = Data(path=write("a.csv", csv(rows, "text,label,part")), split=split)
    assert texts(load_dataset(data, task)) == {"train": ["a"], "validation": ["b", "d"], "test": ["c"]}
    (problem,) = refused(Data(path=write("b.csv", csv([*rows, ("e", "x", "")], "text,label,part")), split=split), task)
    assert (problem.code, problem.line, problem.values["value"]) == ("split-value", 6, "")
    (problem,) = refused(Data(path=data.path, split=Split(column="prt")), task)
    assert (problem.code, problem.key, problem.values["near"]) == ("column-missing", "data.split.column", "part")


def test_groups_stay_together(write: Write, task: Any) -> None:
    rows = [
        (text, label, f"author {number % 20}" if number % 5 else "") for number, (text, label) in enumerate(HUNDRED)
    ]
    path = write("a.csv", csv(rows, "text,label,author"))
    dataset = load_dataset(Data(path=path, split=Split(ratio=(6, 2, 2), group="author")), task)
    author_of = {text: author for text, _, author in rows}
    authors = [{author_of[text] for text in side} - {""} for side in texts(dataset).values()]
    assert authors[0].isdisjoint(authors[1]) and authors[0].isdisjoint(authors[2]) and authors[1].isdisjoint(authors[2])
    assert refused(Data(path=path, split=Split(group="autor")), task)[0].values["near"] == "author"


def test_duplicates_in_several_groups_do_not_leak(write: Write, task: Any) -> None:
    rows = [("the same text", "a", f"author {number}") for number in range(40)]
    rows += [(text, label, text) for text, label in HUNDRED]
    dataset = load_dataset(Data(path=write("a.csv", csv(rows, "text,label,g")), split=Split(group="g")), task)
    assert sum("the same text" in side for side in texts(dataset).values()) == 1
    assert dataset.removed["rows-shared"]


def test_given_files_are_kept_and_training_rows_give_way(write: Write, task: Any) -> None:
    path, test = write("a.csv", csv(HUNDRED)), write("test.csv", csv([("TEXT  number 3", "b"), ("new", "a")]))
    dataset = load_dataset(Data(path=path, test=test), task)
    assert texts(dataset)["test"] == ["TEXT  number 3", "new"]
    assert dataset.removed == {"rows-shared": 1}
    assert len(dataset.train) + len(dataset.validation) == 99 and dataset.validation
    both = load_dataset(
        Data(path=path, test=test, validation=write("v.jsonl", json.dumps({"text": "v", "label": "a"}))), task
    )
    assert len(both.train) == 99 and texts(both)["validation"] == ["v"]
    (problem,) = refused(Data(path=path, test=write("t.csv", csv([("a", "b")], "txt,label"))), task)
    assert problem.code == "role-missing" and problem.file is not None and problem.file.endswith("t.csv")


def test_stratified_shares_are_exact(write: Write, task: Any) -> None:
    dataset = load_dataset(Data(path=write("a.csv", csv(HUNDRED)), split=Split(stratify=True)), task)
    for rows, count in ((dataset.train, 40), (dataset.validation, 5), (dataset.test, 5)):
        assert [sum(row.values["label"] == label for row in rows) for label in "ab"] == [count, count]


def test_sides_without_rows_are_refused(write: Write, task: Any) -> None:
    path = write("a.csv", csv([("a", "x"), (" ", "x")]))
    (problem,) = refused(Data(path=path), task)
    assert problem.code in ("train-empty", "validation-empty")
    assert problem.values == {"rows": 1, "removed": 1, "causes": "prompt-incomplete"}
    assert len(load_dataset(Data(path=path, split=Split(ratio=(1, 0, 0))), task).train) == 1
    blank = write("blank.csv", csv([(" ", "x")]))
    assert refused(Data(path=blank), task)[0].code == "train-empty"
    hundred = write("h.csv", csv(HUNDRED))
    assert refused(Data(path=hundred, test=blank), task)[0].code == "test-empty"
    assert refused(Data(path=hundred, validation=blank), task)[0].code == "validation-empty"
