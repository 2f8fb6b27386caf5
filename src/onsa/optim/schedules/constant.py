"""Constant: the same rate throughout, after the warm-up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from onsa.optim.schedules.base import Schedule


class Constant(Schedule):
    """``1``."""

    kind: ClassVar[str] = "constant"

    def after_warmup(self, step: int, total: int, seen: Sequence[float]) -> float:
        return 1.0
