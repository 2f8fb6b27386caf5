"""Plateau: down by a step whenever the validation rows no longer improve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field

from onsa.optim.schedules.base import Schedule


class Plateau(Schedule):
    """``shrinkⁿ``, where ``n`` counts the times that ``train.best`` stood still; never below ``floor``.

    shrink: what the rate is multiplied by each time.
    patience: evaluations in a row without an improvement that are borne.
    threshold: by how much the metric must be better to count as an improvement.
    floor: the least share of the base rate.
    """

    kind: ClassVar[str] = "plateau"
    watches: ClassVar[bool] = True
    shrink: Annotated[float, Field(gt=0, lt=1)] = 0.5
    patience: Annotated[int, Field(ge=0)] = 1
    threshold: Annotated[float, Field(ge=0)] = 1e-4
    floor: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def after_warmup(self, step: int, total: int, seen: Sequence[float]) -> float:
        best, stale, factor = float("inf"), 0, 1.0
        for value in seen:
            improved = value < best - self.threshold
            best, stale = (value, 0) if improved else (best, stale + 1)
            if stale > self.patience:
                factor, stale = max(self.floor, factor * self.shrink), 0
        return factor
