"""Squared error: a number a row."""

from __future__ import annotations

from typing import ClassVar

from onsa.models.batch import Batch
from onsa.models.policy import Models
from onsa.objectives.base import Loss, Objective
from onsa.spec.component import Form


class SquaredError(Objective):
    """``(prediction - target)²``."""

    kind: ClassVar[str] = "squared-error"
    reads: ClassVar[frozenset[Form]] = frozenset({Form.SCORED})

    def __call__(self, models: Models, batch: Batch) -> Loss:
        predicted_R = models.policy.classes(batch)[:, 0]
        target_R, weight_R = batch.target_M.to(predicted_R.device), batch.weight_M.to(predicted_R.device)
        return Loss((weight_R * (predicted_R - target_R).square()).sum(), weight_R.sum())
