"""Quality: every finding, its level, its counts and its places."""

from __future__ import annotations

from typing import Any

from onsa.data.quality import examine
from onsa.data.rows import Pool
from onsa.data.survey import survey
from onsa.data.table import Row, Table
from onsa.spec.errors import Level, Problem
from onsa.spec.messages import say

COLUMNS = {"text": "text", "label": "label"}
GOOD = [(f"a text of its own {number}", "ab"[number % 2]) for number in range(20)]


def table(own: list[Row]) -> Table:
    return Table(own, list(COLUMNS), own[0].file, "csv", "")


def rows(pairs: list[tuple[str, str]], file: str = "a.csv") -> list[Row]:
    return [Row({"text": text, "label": label}, file, line) for line, (text, label) in enumerate(pairs, 2)]


def found(task: Any, *pairs: tuple[str, str], **others: list[tuple[str, str]]) -> dict[str, Problem]:
    sides = {"train": rows(list(pairs)), **{side: rows(given, f"{side}.csv") for side, given in others.items()}}
    looked = {side: survey(Pool([table(own)], [COLUMNS], dict).part(0), task) for side, own in sides.items()}
    problems = examine(looked, task)
    assert [problem.level for problem in problems] == sorted((p.level for p in problems), key=list(Level).index)
    for problem in problems:
        for language in ("en", "ja"):
            assert say(problem.code, language, **problem.values)
            assert say(f"{problem.code}.fix", language, **problem.values)
    return {problem.code: problem for problem in problems}


def test_good_rows_have_no_problems(task: Any) -> None:
    assert found(task, *GOOD) == {}


def test_unusable(task: Any) -> None:
    problem = found(task, *GOOD, (" ", "a"), ("", "b"))["rows-unusable"]
    assert problem.level is Level.WARNING
    assert (problem.values["count"], problem.values["total"]) == (2, 22)
    assert problem.values["examples"] == "a.csv:22, a.csv:23" and problem.file == "a.csv"
    assert found(task, ("", "a"))["rows-unusable"].level is Level.ERROR


def test_near_empty(task: Any) -> None:
    problem = found(task, *GOOD, ("!?", "a"), ("x", "a"), ("良", "b"), ("ok", "b"))["rows-near-empty"]
    assert (problem.level, problem.values["count"]) == (Level.NOTE, 3)


def test_duplicates_and_conflicts(task: Any) -> None:
    problems = found(task, *GOOD, GOOD[0], ("A text of  its own 1", "b"), ("a text of its own 2", "b"))
    assert problems.keys() == {"rows-duplicate", "rows-alike", "rows-conflicting"}
    assert problems["rows-duplicate"].values["examples"] == "a.csv:22"
    assert problems["rows-alike"].values["examples"] == "a.csv:23"
    values = problems["rows-conflicting"].values
    assert (values["inputs"], values["count"], values["examples"]) == (1, 2, "a.csv:4, a.csv:24")


def test_shared(task: Any) -> None:
    problem = found(task, *GOOD, test=[("A text of its own 4", "a")])["rows-shared"]
    assert problem.values == {"count": 1, "examples": "a.csv:6", "side": "test"}
    assert found(task, *GOOD, validation=[("x y", "a")], test=[("x y", "a")])["rows-shared"].file == "validation.csv"


def test_balance(task: Any) -> None:
    single = found(task, ("one text", "a"), ("two texts", "a"))["class-single"]
    assert single.level is Level.ERROR and single.values["name"] == "a"
    many = [(f"text number {number}", "a") for number in range(120)]
    problems = found(task, *many, *[(f"other {number}", "b") for number in range(5)])
    assert problems.keys() == {"classes-unbalanced"}
    problems = found(task, *GOOD, ("rare one", "c"))
    assert problems.keys() == {"classes-rare"} and problems["classes-rare"].values["names"] == "c (1)"
