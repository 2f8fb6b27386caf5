"""Profiles: each look, and the figures behind it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from onsa.data.profile import Look
from onsa.data.profiling import as_text, is_blank, profile
from onsa.data.table import Row, Table

CHAT = [{"role": "user", "content": "What is the capital of France?"}, {"role": "assistant", "content": "It is Paris."}]
SHAREGPT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]


def table(**columns: list[Any]) -> Table:
    count = len(next(iter(columns.values())))
    rows = [Row({name: cells[at] for name, cells in columns.items()}, "a.csv", at + 2) for at in range(count)]
    return Table(rows, list(columns), "a.csv", "csv", "")


@pytest.mark.parametrize(
    ("cells", "look"),
    [
        ([None, "", " ", float("nan")], Look.EMPTY),
        ([CHAT] * 3, Look.MESSAGES),
        ([json.dumps(CHAT)] * 3, Look.MESSAGES),
        ([SHAREGPT, SHAREGPT[:1]], Look.MESSAGES),
        ([["a", "b"], ["c"], []], Look.LABELS),
        (["1", "2.5", " -3e2 ", ""], Look.NUMBER),
        ([0.5, 1, 2.25], Look.NUMBER),
        ([str(number) for number in range(30)], Look.NUMBER),
        (["1", "2", "3", "4", "5"] * 6, Look.CATEGORY),
        ([0, 1] * 10, Look.CATEGORY),
        ([True, False, True], Look.CATEGORY),
        (["pos", "neg"] * 5, Look.CATEGORY),
        ([f"intent {number % 77}" for number in range(770)], Look.CATEGORY),
        (["nan", "inf", "1", "2"], Look.TEXT),
        ([f"a text of its own, number {number}" for number in range(30)], Look.TEXT),
        (["x" * 200, "y" * 200] * 5, Look.TEXT),
        ([{"a": 1}, {"b": 2}], Look.OTHER),
        ([b"1", b"2"], Look.OTHER),
        ([[1, 2], [3]], Look.OTHER),
    ],
)
def test_looks(cells: list[Any], look: Look) -> None:
    column = profile(table(x=cells)).column("x")
    assert column is not None and column.look is look


def test_figures() -> None:
    found = profile(table(text=["ab", "abcd", "", "ab", "x" * 100])).columns[0]
    assert (found.filled, found.distinct, found.mean_length) == (4, 3, 27.0)
    assert found.examples == ("ab", "abcd", "x" * 79 + "…")
    assert profile(table(m=[CHAT, CHAT])).columns[0].distinct == 1


def test_the_language_is_that_of_the_longest_text() -> None:
    texts = [f"とても良い映画でした。また見たいと思います。{number}" for number in range(10)]
    assert profile(table(text=texts, title=["The best of it"] * 10)).language == "ja"
    assert profile(table(messages=[CHAT] * 3)).language == "en"
    assert profile(table(messages=[json.dumps(CHAT)] * 3)).language == "en"
    assert profile(table(label=["a", "b"] * 5)).language is None


def test_cells() -> None:
    assert as_text(CHAT).endswith("It is Paris.") and as_text("[x") == "[x" and as_text(3) == "3"
    assert is_blank(" \n") and is_blank([]) and not is_blank(0) and not is_blank(False)
