"""The figures of a report as plain lists: confusion, scores per class, ROC, precision-recall, calibration, residuals.

Shapes: R rows, C classes or labels, P points. Classification targets are class indices ``target_R``; multi-label
targets are 0/1 in ``target_RC``; a regression's are numbers ``target_R``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from sklearn.metrics import (
    average_precision_score,
    confusion_matrix,
    multilabel_confusion_matrix,
    precision_recall_curve,
    precision_recall_fscore_support,
    roc_auc_score,
    roc_curve,
)

from onsa.evaluate.document import (
    Bin,
    Calibration,
    Classification,
    ClassScores,
    Curve,
    Histogram,
    Multilabel,
    Pair,
    Regression,
)
from onsa.tasks.base import Outcome

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
T = TypeVar("T")

POINTS = 200  # a curve's longest list
THRESHOLD = 0.5  # a multi-label output above this is a yes


def classification(base: Outcome | None, tuned: Outcome, labels: Sequence[str]) -> Classification:
    """All figures of a task with one class a row, for base and tuned."""

    def each(figure: Callable[[Ints, Floats], T]) -> Pair[T]:
        return _pair(lambda outcome: figure(outcome.target_R, outcome.output_RC), base, tuned)  # type: ignore[arg-type]

    every, size = list(labels), len(labels)
    return Classification(
        labels=every,
        confusion=each(lambda target_R, output_RC: confusion(target_R, output_RC.argmax(1), size)),
        per_class=each(lambda target_R, output_RC: per_class(target_R, output_RC.argmax(1), every)),
        roc=each(lambda target_R, output_RC: roc(one_hot(target_R, size), output_RC, every)),
        pr=each(lambda target_R, output_RC: precision_recall(one_hot(target_R, size), output_RC, every)),
        calibration=each(lambda target_R, output_RC: calibration(output_RC.argmax(1) == target_R, output_RC.max(1))),
    )


def multilabel(base: Outcome | None, tuned: Outcome, labels: Sequence[str], threshold: float = THRESHOLD) -> Multilabel:
    """All figures of a task with a set of labels a row, for base and tuned."""

    def each(figure: Callable[[Ints, Floats], T]) -> Pair[T]:
        return _pair(lambda outcome: figure(outcome.target_R, outcome.output_RC), base, tuned)  # type: ignore[arg-type]

    every = list(labels)
    return Multilabel(
        labels=every,
        threshold=threshold,
        counts=each(lambda target_RC, output_RC: label_counts(target_RC, output_RC > threshold)),
        per_class=each(lambda target_RC, output_RC: per_class(target_RC, output_RC > threshold, every)),
        roc=each(lambda target_RC, output_RC: roc(target_RC, output_RC, every)),
        pr=each(lambda target_RC, output_RC: precision_recall(target_RC, output_RC, every)),
        calibration=each(lambda target_RC, output_RC: calibration(target_RC.ravel() > 0, output_RC.ravel())),
    )


def regression(base: Outcome | None, tuned: Outcome, bins: int = 20) -> Regression:
    """Scatter and residuals of a task that predicts a number, for base and tuned."""
    both = [outcome for outcome in (base, tuned) if outcome is not None]
    residuals = [_number(outcome) - _target(outcome) for outcome in both]
    edges = np.histogram_bin_edges(np.concatenate(residuals), bins)
    return Regression(
        scatter=_pair(lambda outcome: scatter(_target(outcome), _number(outcome)), base, tuned),
        residuals=_pair(lambda outcome: histogram(_number(outcome) - _target(outcome), edges), base, tuned),
    )


def confusion(target_R: Ints, predicted_R: Ints, classes: int) -> list[list[int]]:
    """Counts by right class (rows) and predicted class (columns)."""
    counts: list[list[int]] = confusion_matrix(target_R, predicted_R, labels=np.arange(classes)).tolist()
    return counts


def label_counts(target_RC: npt.NDArray[Any], predicted_RC: npt.NDArray[Any]) -> list[list[int]]:
    """Per label: right yes, wrong yes, wrong no, right no."""
    matrices = multilabel_confusion_matrix(target_RC.astype(int), predicted_RC.astype(int))
    return [[int(m[1, 1]), int(m[0, 1]), int(m[1, 0]), int(m[0, 0])] for m in matrices]


def per_class(target: npt.NDArray[Any], predicted: npt.NDArray[Any], labels: Sequence[str]) -> list[ClassScores]:
    """Precision, recall, F1 and support of each class; a score with nothing to divide by is zero."""
    scores = precision_recall_fscore_support(
        target.astype(int), predicted.astype(int), labels=np.arange(len(labels)), average=None, zero_division=0
    )
    return [
        ClassScores(label=label, precision=float(p), recall=float(r), f1=float(f), support=int(s))
        for label, p, r, f, s in zip(labels, *scores, strict=True)
    ]


def roc(target_RC: npt.NDArray[Any], score_RC: Floats, labels: Sequence[str]) -> list[Curve]:
    """ROC curves, the macro average first, then one a class that has rows on both sides (others have no curve)."""

    def curve(hit_R: Floats, score_R: Floats) -> tuple[Floats, Floats, float]:
        false_P, true_P, _ = roc_curve(hit_R, score_R)
        return false_P, true_P, float(roc_auc_score(hit_R, score_R))

    return _one_vs_rest(target_RC, score_RC, labels, curve)


def precision_recall(target_RC: npt.NDArray[Any], score_RC: Floats, labels: Sequence[str]) -> list[Curve]:
    """Precision over recall, the macro average first; ``area`` is the average precision."""

    def curve(hit_R: Floats, score_R: Floats) -> tuple[Floats, Floats, float]:
        precision_P, recall_P, _ = precision_recall_curve(hit_R, score_R)
        # Thresholds below the last hit only add false alarms at full recall: the curve ends where it gets there.
        end = int(np.argmax(recall_P[::-1] >= 1.0)) + 1
        return recall_P[::-1][:end], precision_P[::-1][:end], float(average_precision_score(hit_R, score_R))

    return _one_vs_rest(target_RC, score_RC, labels, curve)


def calibration(right_R: npt.NDArray[Any], probability_R: Floats, bins: int = 10) -> Calibration:
    """Reliability in bins of equal width, and the expected calibration error (Guo et al. 2017, eq. 3)."""
    place_R = np.clip(np.ceil(probability_R * bins).astype(int) - 1, 0, bins - 1)
    found, error = [], 0.0
    for place in np.unique(place_R):
        inside_R = place_R == place
        sure, right = float(probability_R[inside_R].mean()), float(np.mean(right_R[inside_R]))
        rows = int(inside_R.sum())
        found.append(Bin(low=place / bins, high=(place + 1) / bins, confidence=sure, accuracy=right, rows=rows))
        error += rows * abs(right - sure)
    return Calibration(bins=found, ece=error / len(probability_R))


def scatter(target_R: Floats, predicted_R: Floats) -> list[list[float]]:
    """[right, predicted] of at most 200 rows, spread evenly over the right answers."""
    order_R = np.argsort(target_R, kind="stable")
    chosen = order_R[_spread(len(order_R))]
    return [[float(target_R[row]), float(predicted_R[row])] for row in chosen]


def histogram(value_R: Floats, edges: Floats) -> Histogram:
    """Counts between given edges."""
    return Histogram(edges=[float(e) for e in edges], counts=[int(n) for n in np.histogram(value_R, edges)[0]])


def one_hot(target_R: Ints, classes: int) -> npt.NDArray[np.int64]:
    """Class indices as 0/1 in RC."""
    return np.eye(classes, dtype=np.int64)[target_R]


def thin(x_P: Floats, y_P: Floats, points: int = POINTS) -> tuple[list[float], list[float]]:
    """At most ``points`` points of a curve, evenly along its length, so that corners survive; both ends stay."""
    if len(x_P) > points:
        length_P = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x_P)) + np.abs(np.diff(y_P)))])
        wanted = np.linspace(0.0, length_P[-1], points)
        keep = np.unique(np.clip(np.searchsorted(length_P, wanted), 0, len(x_P) - 1))
        x_P, y_P = x_P[keep], y_P[keep]
    return [float(x) for x in x_P], [float(y) for y in y_P]


def _one_vs_rest(
    target_RC: npt.NDArray[Any],
    score_RC: Floats,
    labels: Sequence[str],
    curve: Callable[[Floats, Floats], tuple[Floats, Floats, float]],
) -> list[Curve]:
    grid_P = np.linspace(0.0, 1.0, 101)
    found, heights, areas = [], [], []
    for column, label in enumerate(labels):
        hit_R = target_RC[:, column]
        if hit_R.min() == hit_R.max():  # no row on one of the sides: no curve is defined
            continue
        x_P, y_P, area = curve(hit_R, score_RC[:, column])
        x, y = thin(x_P, y_P)
        found.append(Curve(label=label, x=x, y=y, area=area))
        heights.append(np.interp(grid_P, x_P, y_P))
        areas.append(area)
    if len(found) > 1:
        # (0, 0) belongs to an ROC curve; interpolation would give the height of the jump at zero instead.
        first = float(np.mean([curve["y"][0] for curve in found]))
        height_P = np.concatenate([[first], np.mean(heights, axis=0)])
        x, y = thin(np.concatenate([[0.0], grid_P]), height_P)
        found.insert(0, Curve(label=None, x=x, y=y, area=float(np.mean(areas))))
    return found


def _pair(figure: Callable[[Outcome], T], base: Outcome | None, tuned: Outcome) -> Pair[T]:
    return Pair(base=None if base is None else figure(base), tuned=figure(tuned))


def _spread(rows: int) -> Ints:
    """Up to 200 positions, evenly spaced."""
    return np.unique(np.linspace(0, rows - 1, min(rows, POINTS)).round().astype(np.int64))


def _number(outcome: Outcome) -> Floats:
    assert outcome.output_RC is not None
    return outcome.output_RC.reshape(-1)


def _target(outcome: Outcome) -> Floats:
    return np.asarray(outcome.target_R, dtype=np.float64).reshape(-1)
