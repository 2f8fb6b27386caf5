"""The split: what holds for every list of rows."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onsa.data.split import SIDES, assign, normal, position, unit
from onsa.spec.sections import Split

KEYS = st.lists(st.text(max_size=8), max_size=40)
RATIO = st.tuples(st.integers(1, 9), st.integers(0, 9), st.integers(0, 9))


def units(texts: list[str]) -> Any:
    return np.array([unit(normal(text)) for text in texts], np.uint64)


def dealt(texts: list[str], split: Split, labels: list[str] | None = None) -> list[str]:
    label_R = None if labels is None else np.array([ord(label) for label in labels], np.int64)
    return [SIDES[side] for side in assign(units(texts), split, label_R)]


@given(st.text())
def test_normal_is_a_fixed_point(text: str) -> None:
    assert normal(normal(text)) == normal(text)


@pytest.mark.parametrize("text", ["Ａbc　ﾃｽﾄ", " abc\n テスト ", "ABC テスト"])
def test_normal_sets_case_width_and_spaces_aside(text: str) -> None:
    assert normal(text) == "abc テスト"


@given(KEYS, KEYS, RATIO)
def test_rows_that_are_added_move_none(keys: list[str], more: list[str], ratio: tuple[int, int, int]) -> None:
    split = Split(ratio=ratio)
    assert dealt([*more, *keys], split)[len(more) :] == dealt(keys, split)


@given(KEYS, st.booleans(), RATIO, st.data())
def test_equal_rows_are_on_one_side(
    keys: list[str], stratify: bool, ratio: tuple[int, int, int], data: st.DataObject
) -> None:
    labels = [data.draw(st.sampled_from("ab")) for _ in keys]
    variants = [*keys, *(f" {key.upper()}\n" for key in keys)]
    sides_of = defaultdict(set)
    for key, side in zip(variants, dealt(variants, Split(ratio=ratio, stratify=stratify), labels * 2), strict=True):
        sides_of[normal(key)].add(side)
    assert all(len(sides) == 1 for sides in sides_of.values())


@settings(max_examples=50)
@given(st.lists(st.tuples(st.text(max_size=6), st.sampled_from("abc")), max_size=60), RATIO)
def test_strata_have_exact_shares(rows: list[tuple[str, str]], ratio: tuple[int, int, int]) -> None:
    label_of: dict[str, str] = {}
    for key, label in rows:
        label_of.setdefault(normal(key), label)
    sides = dealt([key for key, _ in rows], Split(ratio=ratio, stratify=True), [label for _, label in rows])
    side_of = {normal(key): side for (key, _), side in zip(rows, sides, strict=True)}
    for label in "abc":
        units = [key for key in label_of if label_of[key] == label]
        counts = Counter(side_of[unit] for unit in units)
        for side, part in zip(SIDES, ratio, strict=True):
            assert abs(counts[side] - len(units) * part / sum(ratio)) < 1


def test_shares_are_about_the_ratio() -> None:
    counts = Counter(dealt([f"row {number}" for number in range(10_000)], Split(ratio=(8, 1, 1))))
    assert abs(counts["train"] - 8000) < 160 and abs(counts["validation"] - 1000) < 120


def test_a_side_is_known_beforehand() -> None:
    """Fixed for all time: a stored split must not change with a version of Onsa."""
    assert position(units(["a"])).tolist() == [int("ca978112ca1b", 16) / 2**48]
    sides = dealt(["a", "b", "c", "d", "É"], Split(ratio=(1, 1, 1)))
    assert sides == ["test", "train", "train", "train", "train"]
    assert position(units(["日本"])).tolist() == [int("cf2abf0c5be3", 16) / 2**48]


def test_parts_of_zero_get_nothing() -> None:
    keys = [str(number) for number in range(300)]
    for stratify in (False, True):
        assert set(dealt(keys, Split(ratio=(1, 0, 0), stratify=stratify))) == {"train"}
        assert set(dealt(keys, Split(ratio=(8, 0, 2), stratify=stratify))) == {"train", "test"}
    assert dealt([], Split()) == []
