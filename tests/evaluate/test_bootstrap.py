"""Intervals against what is known of them, and the gain of pairing."""

from __future__ import annotations

import math

import numpy as np
import pytest

from onsa.evaluate.bootstrap import interval, intervals, paired, paired_all
from onsa.tasks.base import Outcome


def mean_loss(outcome: Outcome) -> float:
    return float(outcome.loss_R.sum() / outcome.weight_R.sum())


def outcome(loss_R: np.ndarray) -> Outcome:
    return Outcome(np.arange(len(loss_R)), loss_R, np.ones(len(loss_R)))


def test_the_interval_of_a_mean_is_the_normal_one() -> None:
    loss_R = np.random.default_rng(0).normal(5.0, 2.0, 400)
    found = interval(mean_loss, outcome(loss_R), 2000, 1)
    half = 1.96 * loss_R.std() / math.sqrt(400)
    assert found.value == pytest.approx(loss_R.mean())
    assert found.low == pytest.approx(loss_R.mean() - half, abs=0.03)
    assert found.high == pytest.approx(loss_R.mean() + half, abs=0.03)


def test_a_seed_repeats_and_another_differs() -> None:
    one = outcome(np.random.default_rng(0).normal(size=50))
    assert interval(mean_loss, one, 200, 3) == interval(mean_loss, one, 200, 3)
    assert interval(mean_loss, one, 200, 3) != interval(mean_loss, one, 200, 4)


def test_both_models_are_scored_on_the_same_resampled_rows() -> None:
    # Tuned is better by exactly 0.1 on every row: paired, the difference has no spread at all.
    loss_R = np.random.default_rng(0).normal(5.0, 2.0, 60)
    found = paired(mean_loss, outcome(loss_R), outcome(loss_R - 0.1), 300, 1, lower_is_better=True)
    assert found.difference.low == pytest.approx(-0.1) and found.difference.high == pytest.approx(-0.1)
    assert found.base.high - found.base.low > 0.5
    assert found.better is True
    assert paired(mean_loss, outcome(loss_R), outcome(loss_R - 0.1), 300, 1).better is False


def test_no_verdict_where_the_difference_may_be_zero() -> None:
    rng = np.random.default_rng(2)
    found = paired(mean_loss, outcome(rng.normal(size=40)), outcome(rng.normal(size=40)), 500, 1)
    assert found.difference.low < 0 < found.difference.high
    assert found.better is None
    same = outcome(np.ones(10))
    assert paired(mean_loss, same, same, 100, 1).better is None


def test_all_metrics_from_one_set_of_resamples_equal_each_alone() -> None:
    rng = np.random.default_rng(2)
    base, tuned = outcome(rng.normal(size=30)), outcome(rng.normal(size=30) - 1)

    def both(one: Outcome) -> dict[str, float]:
        return {"loss": mean_loss(one), "gain": -mean_loss(one)}

    found = paired_all(both, base, tuned, 200, 5, frozenset({"loss"}))
    assert found["loss"] == paired(mean_loss, base, tuned, 200, 5, lower_is_better=True)
    assert found["loss"].better is True and found["gain"].better is True
    assert intervals(both, base, 200, 5)["loss"] == interval(mean_loss, base, 200, 5)


def test_resamples_where_a_statistic_is_undefined_say_nothing() -> None:
    def sometimes(one: Outcome) -> float:
        return float(one.loss_R.mean()) if 0 in one.row_R else math.nan

    found = interval(sometimes, outcome(np.arange(6.0)), 200, 1)
    assert math.isfinite(found.low) and math.isfinite(found.high)
    assert math.isnan(interval(lambda _: math.nan, outcome(np.arange(6.0)), 100, 1).low)


def test_unlike_rows_and_no_rows_are_refused() -> None:
    one, other = outcome(np.ones(5)), outcome(np.ones(6))
    with pytest.raises(ValueError, match="same rows"):
        paired(mean_loss, one, other, 100, 1)
    with pytest.raises(ValueError, match="at least one row"):
        interval(mean_loss, outcome(np.ones(0)), 100, 1)
