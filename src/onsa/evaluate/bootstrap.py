"""Bootstrap: how far a metric, or the difference between two models, could be chance.

Both models answered the same rows, so both are scored on the SAME resampled rows: what makes a row easy or hard then
cancels in the difference, and a smaller gain can be shown with the same rows (the paired bootstrap; Efron & Tibshirani,
"An Introduction to the Bootstrap", 1993, ch. 13, for the percentile interval; Koehn, "Statistical Significance Tests
for Machine Translation Evaluation", EMNLP 2004, section 4, for pairing).

Shapes: R rows, B resamples, S statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onsa.tasks.base import Outcome

Floats = npt.NDArray[np.float64]
Statistic = Callable[[Outcome], float]
Statistics = Callable[[Outcome], Mapping[str, float]]

TAILS = (2.5, 97.5)  # percentiles: a 95 % interval


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Base and tuned on the same rows, and tuned minus base.

    better: tuning paid, or harmed, by this metric; ``None`` where the interval of the difference contains zero.
    """

    base: Interval
    tuned: Interval
    difference: Interval
    better: bool | None


def interval(statistic: Statistic, outcome: Outcome, resamples: int, seed: int) -> Interval:
    """A statistic of an outcome with its percentile interval."""
    return intervals(lambda sample: {"": statistic(sample)}, outcome, resamples, seed)[""]


def intervals(statistics: Statistics, outcome: Outcome, resamples: int, seed: int) -> dict[str, Interval]:
    """Every statistic of an outcome with its interval, from one set of resamples."""
    values, draws = _resampled(statistics, [outcome], resamples, seed)
    return {name: _interval(values[0][name], draws[name][:, 0]) for name in values[0]}


def paired(
    statistic: Statistic,
    base: Outcome,
    tuned: Outcome,
    resamples: int,
    seed: int,
    lower_is_better: bool = False,
) -> Comparison:
    """Base and tuned compared by one statistic, both on the same resampled rows."""
    falling = frozenset({""}) if lower_is_better else frozenset[str]()
    return paired_all(lambda sample: {"": statistic(sample)}, base, tuned, resamples, seed, falling)[""]


def paired_all(
    statistics: Statistics,
    base: Outcome,
    tuned: Outcome,
    resamples: int,
    seed: int,
    lower_is_better: frozenset[str] = frozenset(),
) -> dict[str, Comparison]:
    """Base and tuned compared by every statistic that both have, from one set of resamples.

    Args:
        statistics: all metrics of an outcome by name, such as ``task.metrics``.
        lower_is_better: the names for which a negative difference is the better one.

    Raises:
        ValueError: the outcomes are not of the same rows, or have none.
    """
    if not np.array_equal(base.row_R, tuned.row_R):
        raise ValueError("a paired comparison needs both outcomes on the same rows in the same order")
    values, draws = _resampled(statistics, [base, tuned], resamples, seed)
    found = {}
    for name, draw_BS in draws.items():
        before, after = values[0][name], values[1][name]
        difference = _interval(after - before, draw_BS[:, 1] - draw_BS[:, 0])
        better = _better(difference, name in lower_is_better)
        found[name] = Comparison(_interval(before, draw_BS[:, 0]), _interval(after, draw_BS[:, 1]), difference, better)
    return found


def _resampled(
    statistics: Statistics, outcomes: Sequence[Outcome], resamples: int, seed: int
) -> tuple[list[dict[str, float]], dict[str, npt.NDArray[np.float64]]]:
    """Each outcome's statistics on all rows, and on each resample as ``{name: value_BS}`` (S: the outcomes)."""
    rows = len(outcomes[0].row_R)
    if rows == 0:
        raise ValueError("an interval needs at least one row")
    values = [{name: float(value) for name, value in statistics(outcome).items()} for outcome in outcomes]
    names = [name for name in values[0] if all(name in other for other in values)]
    draws: dict[str, Any] = {name: np.full((resamples, len(outcomes)), np.nan) for name in names}
    generator = np.random.default_rng(seed)
    for turn in range(resamples):
        index_R = generator.integers(0, rows, rows)
        for column, outcome in enumerate(outcomes):
            sample = statistics(outcome.take(index_R))
            for name in names:
                draws[name][turn, column] = sample.get(name, np.nan)
    return values, draws


def _interval(value: float, draw_B: Floats) -> Interval:
    # A statistic may be undefined on a resample (a class that was not drawn): such resamples say nothing.
    known = draw_B[np.isfinite(draw_B)]
    if len(known) == 0:
        return Interval(value, float("nan"), float("nan"))
    low, high = np.percentile(known, TAILS)
    return Interval(value, float(low), float(high))


def _better(difference: Interval, lower_is_better: bool) -> bool | None:
    if not (difference.low > 0 or difference.high < 0):
        return None
    return (difference.high < 0) == lower_is_better
