"""Slanted triangular: a short rise and a long fall, both in a line (Howard and Ruder 2018, eq. 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field

from onsa.optim.schedules.base import Schedule


class SlantedTriangular(Schedule):
    """``(1 + p · (ratio - 1)) / ratio``, where ``p`` goes from 0 up to 1 and back.

    The rise is the warm-up: ``warmup`` is the paper's ``cut_frac``.

    ratio: the base rate over the lowest, at which the run begins and toward which it falls.
    """

    kind: ClassVar[str] = "slanted-triangular"
    ratio: Annotated[float, Field(gt=1)] = 32.0

    def in_warmup(self, step: int, rise: int) -> float:
        return self._at(step / rise)

    def after_warmup(self, step: int, total: int, seen: Sequence[float]) -> float:
        return self._at(1 - step / total)

    def _at(self, p: float) -> float:
        return (1 + p * (self.ratio - 1)) / self.ratio
