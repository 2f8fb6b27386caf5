"""Alarms: raised where rewards, variety and distance say so, and not where they do not."""

from __future__ import annotations

from typing import Any

import pytest

from onsa.evaluate.alarms import alarms
from onsa.evaluate.document import Compared, Range


def steps(**figures: tuple[float, float]) -> list[dict[str, float]]:
    """Sixteen steps in which figures go evenly from one value to another."""
    return [{name: a + (b - a) * at / 15 for name, (a, b) in figures.items()} for at in range(16)]


def won(high: float) -> list[Compared]:
    rate = Range(value=high - 0.1, low=high - 0.2, high=high)
    entry = Compared(metric="win_rate", base=None, tuned=rate, difference=None, lower_is_better=False, better=None)
    return [entry]


@pytest.mark.parametrize(
    ("told", "comparisons", "wanted"),
    [
        (steps(reward=(0.1, 0.9), entropy=(1.0, 0.5), kl=(0.0, 0.2)), won(0.8), []),
        (steps(reward=(0.1, 0.9), entropy=(1.0, -0.08)), [], ["entropy"]),
        (steps(reward=(0.1, 0.9), entropy=(0.04, 0.03)), [], []),
        (steps(reward=(0.1, 0.9), kl=(0.0, 2.0)), [], ["runaway"]),
        (steps(reward=(0.1, 0.9), kl=(0.0, 0.1)), won(0.45), ["hacking"]),
        (steps(reward=(0.9, 0.1)), won(0.45), []),
        (steps(reward=(0.1, 0.9), kl=(0.0, 2.0))[:7], [], []),
        (steps(loss=(0.1, 0.9), kl=(0.0, 2.0)), won(0.45), []),
    ],
)
def test_an_alarm_is_raised_where_it_should_be(told: Any, comparisons: Any, wanted: list[str]) -> None:
    assert alarms(told, comparisons) == wanted


def test_one_wild_answer_raises_none() -> None:
    told = steps(reward=(0.1, 0.9), kl=(0.0, 0.1))
    told[14]["kl"] = 50.0
    assert alarms(told) == []
