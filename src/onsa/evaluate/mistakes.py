"""The rows a model got most wrong, with their texts and where they stand in the user's file.

Shapes: R rows, C classes or labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from onsa.evaluate.curves import THRESHOLD
from onsa.evaluate.document import Mistake
from onsa.tasks.base import Outcome

Ends = Callable[[int], tuple[str, str]]
Look = Callable[[int], tuple[str, str]]  # a row's number (as in row_R) to its text and its place, ``file:line``


def labelled(outcome: Outcome, labels: Sequence[str], look: Look, most: int = 10) -> list[Mistake]:
    """Rows of a wrong class, the surest first."""
    assert outcome.output_RC is not None and outcome.target_R is not None
    predicted_R, sure_R = outcome.output_RC.argmax(1), outcome.output_RC.max(1)
    wrong = np.flatnonzero(predicted_R != outcome.target_R)
    worst = wrong[np.argsort(-sure_R[wrong], kind="stable")][:most]
    return [
        _mistake(outcome, row, look, (labels[outcome.target_R[row]], labels[predicted_R[row]]), float(sure_R[row]))
        for row in worst
    ]


def multilabelled(
    outcome: Outcome, labels: Sequence[str], look: Look, most: int = 10, threshold: float = THRESHOLD
) -> list[Mistake]:
    """Rows with a wrong set of labels, those with the surest wrong label first."""
    assert outcome.output_RC is not None and outcome.target_R is not None
    target_RC = outcome.target_R > 0
    predicted_RC = outcome.output_RC > threshold
    sure_RC = np.where(predicted_RC, outcome.output_RC, 1 - outcome.output_RC)
    worst_R = np.where(predicted_RC != target_RC, sure_RC, 0.0).max(1)
    order = np.argsort(-worst_R, kind="stable")[:most]

    def names(chosen_C: Sequence[bool]) -> str:
        return ", ".join(label for label, chosen in zip(labels, chosen_C, strict=True) if chosen) or "–"

    return [
        _mistake(outcome, row, look, (names(target_RC[row]), names(predicted_RC[row])), float(worst_R[row]))
        for row in order
        if worst_R[row] > 0
    ]


def scored(outcome: Outcome, look: Look, most: int = 10) -> list[Mistake]:
    """Rows whose number is furthest off."""
    assert outcome.output_RC is not None and outcome.target_R is not None
    target_R = np.asarray(outcome.target_R, dtype=np.float64).reshape(-1)
    predicted_R = outcome.output_RC.reshape(-1)
    order = np.argsort(-np.abs(predicted_R - target_R), kind="stable")[:most]
    return [
        _mistake(outcome, row, look, (f"{target_R[row]:.4g}", f"{predicted_R[row]:.4g}"), None)
        for row in order
        if predicted_R[row] != target_R[row]
    ]


def compared(
    outcome: Outcome, margin_R: npt.NDArray[np.float64], look: Look, ends: Ends, most: int = 10
) -> list[Mistake]:
    """Rows whose better answer is behind, the furthest first.

    Args:
        margin_R: by how much it is ahead.
        ends: a row's better and worse answer in words, by its number.
    """
    order = np.argsort(margin_R, kind="stable")[:most]
    return [
        _mistake(outcome, row, look, ends(int(outcome.row_R[row])), float(1 / (1 + np.exp(margin_R[row]))))
        for row in order
        if margin_R[row] < 0
    ]


def _mistake(outcome: Outcome, row: int, look: Look, answers: tuple[str, str], sure: float | None) -> Mistake:
    text, place = look(int(outcome.row_R[row]))
    return Mistake(text=text, expected=answers[0], predicted=answers[1], probability=sure, place=place)
