"""Figures against scikit-learn and against cases small enough to count."""

from __future__ import annotations

import json

import numpy as np
import pytest
from documents import LABELS, class_outcomes, history
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from onsa.evaluate import curves, mistakes
from onsa.evaluate.history import overfitting, smooth, thinned
from onsa.tasks.base import Outcome


def test_classification_agrees_with_scikit_learn() -> None:
    base, tuned = class_outcomes(rows=600)
    found = curves.classification(base, tuned, LABELS)
    json.dumps(found, allow_nan=False)
    assert tuned.output_RC is not None and tuned.target_R is not None
    predicted_R = tuned.output_RC.argmax(1)
    counts = np.array(found["confusion"]["tuned"])
    assert counts.sum() == 600 and np.trace(counts) == (predicted_R == tuned.target_R).sum()
    assert [one["f1"] for one in found["per_class"]["tuned"]] == pytest.approx(
        f1_score(tuned.target_R, predicted_R, average=None)
    )
    hit_R = tuned.target_R == 2
    assert found["roc"]["tuned"][3]["area"] == pytest.approx(roc_auc_score(hit_R, tuned.output_RC[:, 2]))
    assert found["pr"]["tuned"][3]["area"] == pytest.approx(average_precision_score(hit_R, tuned.output_RC[:, 2]))
    assert found["roc"]["tuned"][0]["label"] is None
    assert found["roc"]["tuned"][0]["area"] == pytest.approx(
        roc_auc_score(tuned.target_R, tuned.output_RC, multi_class="ovr")
    )


def test_curves_are_short_and_keep_their_area() -> None:
    rng = np.random.default_rng(0)
    target_RC = (rng.random((20_000, 1)) < 0.4).astype(int)
    score_RC = 1 / (1 + np.exp(-(rng.normal(size=target_RC.shape) + target_RC)))
    roc, precision = curves.roc(target_RC, score_RC, ["a"]), curves.precision_recall(target_RC, score_RC, ["a"])
    for curve in (*roc, *precision):
        assert 100 <= len(curve["x"]) <= 200
        assert list(np.diff(curve["x"]) >= 0) == [True] * (len(curve["x"]) - 1)
    assert np.trapezoid(roc[0]["y"], roc[0]["x"]) == pytest.approx(roc[0]["area"], abs=0.002)
    assert (roc[0]["x"][0], roc[0]["y"][0], roc[0]["x"][-1], roc[0]["y"][-1]) == (0, 0, 1, 1)


def test_a_class_without_rows_has_no_curve_but_a_line_in_the_table() -> None:
    target_R = np.array([0, 1, 0, 1])
    output_RC = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [0.5, 0.4, 0.1]])
    one = Outcome(np.arange(4), np.ones(4), np.ones(4), output_RC, target_R)
    found = curves.classification(None, one, ["a", "b", "c"])
    assert [curve["label"] for curve in found["roc"]["tuned"]] == [None, "a", "b"]
    assert found["per_class"]["tuned"][2]["support"] == 0
    assert found["confusion"] == {"base": None, "tuned": [[2, 0, 0], [1, 1, 0], [0, 0, 0]]}


def test_calibration_by_hand() -> None:
    found = curves.calibration(np.array([1, 0, 1, 1]), np.array([0.15, 0.15, 0.95, 1.0]))
    assert [one["rows"] for one in found["bins"]] == [2, 2]
    assert found["bins"][0]["accuracy"] == 0.5 and found["bins"][1]["confidence"] == pytest.approx(0.975)
    assert found["ece"] == pytest.approx((2 * 0.35 + 2 * 0.025) / 4)


def test_multilabel_counts() -> None:
    target_RC = np.array([[1, 0], [0, 0], [1, 1]])
    output_RC = np.array([[0.9, 0.8], [0.1, 0.2], [0.3, 0.9]])
    one = Outcome(np.arange(3), np.ones(3), np.ones(3), output_RC, target_RC)
    found = curves.multilabel(None, one, ["a", "b"])
    assert found["counts"]["tuned"] == [[1, 0, 1, 1], [1, 1, 0, 1]]
    wrong = mistakes.multilabelled(one, ["a", "b"], lambda row: (f"text {row}", f"f:{row}"))
    assert [(one["expected"], one["predicted"]) for one in wrong] == [("a", "a, b"), ("a, b", "b")]


def test_regression_shares_its_edges() -> None:
    rng = np.random.default_rng(0)
    target_R = rng.normal(size=500)
    made = [Outcome(np.arange(500), np.ones(500), np.ones(500), (target_R + s)[:, None], target_R) for s in (1.0, 0.1)]
    found = curves.regression(made[0], made[1])
    assert found["residuals"]["base"] is not None
    assert found["residuals"]["base"]["edges"] == found["residuals"]["tuned"]["edges"]
    assert sum(found["residuals"]["tuned"]["counts"]) == 500 and len(found["scatter"]["tuned"]) == 200


def test_worst_mistakes_come_surest_first() -> None:
    output_RC = np.array([[0.6, 0.4], [0.9, 0.1], [0.2, 0.8]])
    one = Outcome(np.array([4, 7, 9]), np.ones(3), np.ones(3), output_RC, np.array([1, 1, 1]))
    wrong = mistakes.labelled(one, ["a", "b"], lambda row: (f"text {row}", f"f.csv:{row}"))
    assert [(w["text"], w["predicted"], w["probability"]) for w in wrong] == [
        ("text 7", "a", 0.9),
        ("text 4", "a", 0.6),
    ]


def test_overfitting_begins_at_the_least_validation_loss() -> None:
    assert overfitting(history()) == 105
    assert overfitting(history(overfits=False)) is None
    diverging = history()
    for point in diverging["train"]:
        point["loss"] = point["step"] / 100
    assert overfitting(diverging) is None


def test_curves_are_smoothed_and_thinned() -> None:
    assert smooth([0, 3, 0, 3], 3) == [1.5, 1, 2, 1.5]
    x, y = thinned(range(1000), [1.0] * 1000, 100)
    assert len(x) == 100 and x[0] == 4.5 and set(y) == {1.0}
