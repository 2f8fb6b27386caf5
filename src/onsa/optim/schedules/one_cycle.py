"""One cycle: up from a low rate and down to a far lower one (Smith and Topin 2018)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field

from onsa.optim.schedules.base import Schedule


class OneCycle(Schedule):
    """Half a cosine up from ``lr / div`` to ``lr``, half a cosine down to ``lr / final``: the base rate is the peak.

    The rise is the warm-up, and longer than the usual one.

    warmup: the rise: a share of the run below 1, or whole steps.
    div: the base rate over the first step's.
    final: the base rate over the last step's.
    """

    kind: ClassVar[str] = "one-cycle"
    warmup: Annotated[float, Field(ge=0)] = 0.3
    div: Annotated[float, Field(gt=1)] = 25.0
    final: Annotated[float, Field(gt=1)] = 1e4

    def in_warmup(self, step: int, rise: int) -> float:
        return _between(1 / self.div, 1.0, step / rise)

    def after_warmup(self, step: int, total: int, seen: Sequence[float]) -> float:
        return _between(1.0, 1 / self.final, step / max(1, total - 1))


def _between(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
