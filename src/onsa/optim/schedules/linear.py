"""Linear: down to zero in a line."""

from __future__ import annotations

from typing import ClassVar

from onsa.optim.schedules.base import Schedule


class Linear(Schedule):
    """``1 - progress``."""

    kind: ClassVar[str] = "linear"

    def after_warmup(self, progress: float) -> float:
        return 1.0 - progress
