"""Linear: down to zero in a line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from onsa.optim.schedules.base import Schedule


class Linear(Schedule):
    """``1 - step / total``."""

    kind: ClassVar[str] = "linear"

    def after_warmup(self, step: int, total: int, seen: Sequence[float]) -> float:
        return 1.0 - step / total
