"""What every source keeps: each row once an epoch, an order made of (seed, epoch) alone, a place to resume at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trial
from onsa.models.batch import Example
from onsa.sources.base import Cursor, Desk, Feed, Source
from onsa.spec import registry
from onsa.spec.sections import Train

every_kind = pytest.mark.parametrize("kind", list(registry.kinds("source")))
sizes = st.lists(st.integers(1, 40), min_size=1, max_size=30)
batches = st.one_of(
    st.fixed_dictionaries({"batch_rows": st.integers(1, 9)}),
    st.fixed_dictionaries({"batch_tokens": st.integers(1, 90)}),
)
few = settings(max_examples=40, deadline=None)


def source(kind: str, **settings: Any) -> Source:
    return cast(Source, registry.load("source", kind).model_validate({**trial.needed("source", kind), **settings}))


def feed(lengths: list[int], seed: int = 7, **train: Any) -> Feed:
    rows = [Example(np.zeros(length, np.int32), target=0, row=row) for row, length in enumerate(lengths)]
    return Feed(rows, Train(**{"epochs": 3, **train}), seed)


def taken(found: Source, given: Feed, at: Cursor | None = None) -> list[tuple[list[int], Cursor]]:
    return [([example.row for example in rows], after) for rows, after in found.steps(given, at or Cursor())]


@every_kind
@given(lengths=sizes, size=batches)
@few
def test_every_row_comes_once_an_epoch(kind: str, lengths: list[int], size: dict[str, int]) -> None:
    seen: dict[int, list[int]] = {}
    epoch = 0
    steps = taken(source(kind), feed(lengths, **size))
    for rows, after in steps:
        seen.setdefault(epoch, []).extend(rows)
        epoch = after.epoch
    assert [sorted(rows) for rows in seen.values()] == [list(range(len(lengths)))] * 3
    assert len(steps) == source(kind).total(feed(lengths, **size))
    assert [after.step for _, after in steps] == list(range(1, len(steps) + 1))


@every_kind
def test_the_order_is_a_function_of_seed_and_epoch(kind: str) -> None:
    lengths, found = [3] * 40, source(kind)
    one = taken(found, feed(lengths, batch_rows=10))
    assert one == taken(source(kind), feed(lengths, batch_rows=10))
    epochs = [[row for rows, _ in one[start : start + 4] for row in rows] for start in (0, 4, 8)]
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != list(range(40))
    assert one != taken(found, feed(lengths, seed=8, batch_rows=10))
    second = taken(found, feed(lengths, batch_rows=10), Cursor(4, 1, 0))
    assert second == one[4:], "an epoch's order does not hang on the epochs before it"


@every_kind
@given(lengths=sizes, size=batches, data=st.data())
@few
def test_a_cursor_gives_the_same_remainder(kind: str, lengths: list[int], size: dict[str, int], data: Any) -> None:
    limit = data.draw(st.one_of(st.none(), st.integers(1, 40)))
    given_ = feed(lengths, max_steps=limit, **size)
    steps = taken(source(kind), given_)
    assert len(steps) == source(kind).total(given_) and (limit is None or len(steps) <= limit)
    place = data.draw(st.integers(0, len(steps) - 1))
    assert taken(source(kind), given_, steps[place][1]) == steps[place + 1 :]


@every_kind
@given(lengths=sizes, budget=st.integers(1, 90))
@few
def test_the_budget_of_tokens_is_kept(kind: str, lengths: list[int], budget: int) -> None:
    given, found = feed(lengths, batch_tokens=budget), source(kind)
    long = [len(example.token_T) for example in found.seen(given.examples)]
    for rows, _ in taken(found, given):
        assert len(rows) == 1 or sum(long[row] for row in rows) <= budget


@every_kind
@given(lengths=sizes, rows=st.integers(1, 9))
@few
def test_the_budget_of_rows_is_kept(kind: str, lengths: list[int], rows: int) -> None:
    counts = [len(found) for found, _ in taken(source(kind), feed(lengths, epochs=1, batch_rows=rows))]
    assert counts[:-1] == [rows] * (len(counts) - 1) and 1 <= counts[-1] <= rows


def test_a_data_set_keeps_its_order_where_it_is_told_to() -> None:
    found = taken(source("dataset", shuffle=False), feed([2] * 10, epochs=2, batch_rows=4))
    assert [row for rows, _ in found for row in rows] == [*range(10), *range(10)]


@given(lengths=sizes, size=batches, window=st.integers(2, 7))
@few
def test_a_window_deals_the_same_rows_by_length(lengths: list[int], size: dict[str, int], window: int) -> None:
    given = feed(lengths, **size)
    found = source("dataset", window=window)
    steps = taken(found, given)
    epochs: dict[int, list[int]] = {}
    epoch = 0
    for rows, after in steps:
        epochs.setdefault(epoch, []).extend(rows)
        epoch = after.epoch
    assert [sorted(rows) for rows in epochs.values()] == [list(range(len(lengths)))] * 3
    assert len(steps) == found.total(given)
    place = steps[len(steps) // 2][1]
    assert taken(found, given, place) == steps[place.step :], "going on in the middle of a window"


def test_a_window_pads_less_and_keeps_drawing() -> None:
    lengths = np.random.default_rng(1).integers(4, 60, 200).tolist()
    given = feed(lengths, batch_rows=8)

    def padded(window: int) -> int:
        return sum(
            max(lengths[row] for row in rows) * len(rows) for rows, _ in taken(source("dataset", window=window), given)
        )

    assert padded(8) < 0.85 * padded(1)
    steps = [rows for rows, _ in taken(source("dataset", window=8), given)][:25]
    means = [np.mean([lengths[row] for row in rows]) for rows in steps]
    assert means != sorted(means) and means != sorted(means, reverse=True), "short and long steps come mixed"


@given(lengths=sizes, rows=st.integers(1, 9), prompts=st.integers(1, 12), passes=st.integers(1, 3), data=st.data())
@few
def test_rollouts_are_learnt_from_as_often_as_is_said(
    lengths: list[int], rows: int, prompts: int, passes: int, data: Any
) -> None:
    given, found = feed(lengths, epochs=2, batch_rows=rows), source("rollouts", prompts=prompts, passes=passes)
    steps = taken(found, given)
    seen = [row for step, after in steps for row in step]
    assert sorted(seen) == sorted([*range(len(lengths))] * 2 * passes)
    assert len(steps) == found.total(given) and all(len(step) <= rows for step, _ in steps)
    place = data.draw(st.integers(0, len(steps) - 1))
    assert taken(found, given, steps[place][1]) == steps[place + 1 :]


class Recorder(Desk):
    """A desk that writes down what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[int], list[list[int]], bool]] = []
        self.rows: list[Example] = []

    def answer(self, prompts: Sequence[Example], seeds: Sequence[Sequence[int]], often: bool) -> list[Example]:
        self.asked.append(([prompt.row for prompt in prompts], [list(each) for each in seeds], often))
        self.rows = list(prompts)
        return self.rows

    def again(self) -> list[Example]:
        return self.rows

    def save(self, to: Path) -> None: ...

    def restore(self, at: Path) -> None: ...


def test_prompts_are_answered_once_a_round_and_not_anew_where_a_run_goes_on() -> None:
    found = source("rollouts", prompts=4, passes=2, group=3)
    given = replace(feed([3] * 8, epochs=1, batch_rows=2), desk=(desk := Recorder()))
    steps = taken(found, given)
    assert len(steps) == 8 and [len(rows) for rows, _, _ in desk.asked] == [4, 4]
    assert all(often and all(len(each) == 3 for each in seeds) for _, seeds, often in desk.asked)
    seeds = [seed for _, groups, _ in desk.asked for group in groups for seed in group]
    assert len(set(seeds)) == len(seeds), "no two answers fall alike"
    again = Recorder()
    again.rows = [given.examples[row] for row in desk.asked[0][0]]
    assert taken(found, replace(given, desk=again), steps[1][1]) == steps[2:]
    assert again.asked == desk.asked[1:], "a round that was begun is not answered anew"
    once = Recorder()
    taken(source("rollouts"), replace(feed([3] * 8, epochs=1, batch_rows=2), desk=once))
    assert not any(often for _, _, often in once.asked)
