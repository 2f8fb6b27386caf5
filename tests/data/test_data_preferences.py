"""Preferences: how often the longer answer wins, ties, and pairs that are ranked both ways."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onsa.data.compare import to_comparison
from onsa.data.preferences import examine
from onsa.data.table import Row
from onsa.spec.errors import Problem


def found(values: Sequence[dict[str, Any]]) -> dict[str, Problem]:
    rows = [Row(given, "pairs.jsonl", line) for line, given in enumerate(values, 1)]
    problems = examine({"train": rows}, lambda row: to_comparison(row.values))
    return {problem.code: problem for problem in problems}


def pairs(longer: int, shorter: int) -> list[dict[str, Any]]:
    long, short = "a much longer answer", "short"
    orders = [(long, short)] * longer + [(short, long)] * shorter
    return [{"prompt": f"question {i}", "chosen": one, "rejected": two} for i, (one, two) in enumerate(orders)]


def test_length_is_counted() -> None:
    even = found(pairs(11, 9))
    assert even.keys() == {"pairs-length"} and even["pairs-length"].values == {"share": "55%", "pairs": 20}
    for given in (pairs(15, 5), pairs(5, 15)):
        assert found(given).keys() == {"pairs-length-biased"}
    assert found(pairs(9, 0)) == {}, "a few pairs say nothing of length"


def test_ties_are_counted_and_of_no_length() -> None:
    tied = [{**pair, "tie": True} for pair in pairs(3, 0)]
    (problem,) = found(tied).values()
    assert problem.code == "pairs-tied" and problem.values == {"count": 3, "pairs": 3}


def test_both_ways_are_a_conflict() -> None:
    there = {"prompt": "why?", "chosen": "so", "rejected": "no"}
    back = {"prompt": "Why? ", "chosen": "no", "rejected": "so"}
    (problem,) = found([there, back]).values()
    assert problem.code == "pairs-conflicting" and problem.values["count"] == 1
    assert "pairs.jsonl:1" in problem.values["examples"] and "pairs.jsonl:2" in problem.values["examples"]
    assert found([there, {**back, "prompt": "how?"}, there]) == {}


def test_a_ranking_is_held_against_pairs() -> None:
    ranking = {"prompt": "why?", "answers": ["so", "no", "never"]}
    assert found([ranking, {"prompt": "why?", "chosen": "never", "rejected": "so"}]).keys() == {"pairs-conflicting"}


def test_one_answer_both_good_and_bad_is_a_conflict() -> None:
    good = {"prompt": "why?", "completion": "so", "label": True}
    assert found([good, {**good, "label": False}]).keys() == {"pairs-conflicting"}
    assert found([good, good]) == {}
