"""Inverse square root: fast down at first, then ever slower (Vaswani et al. 2017, eq. 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field

from onsa.optim.schedules.base import Schedule, steps_of


class InverseSqrt(Schedule):
    """``1 / √(1 + step / timescale)``.

    timescale: how long the rate takes to fall to 0.71, and three times as long to a half: a share below 1 of the steps
        after the warm-up, or whole steps.
    """

    kind: ClassVar[str] = "inverse-sqrt"
    timescale: Annotated[float, Field(gt=0)] = 0.1

    def after_warmup(self, step: int, total: int, seen: Sequence[float]) -> float:
        return 1 / math.sqrt(1 + step / max(1, steps_of(self.timescale, total)))
