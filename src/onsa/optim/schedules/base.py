"""Schedule: the learning rate as a pure function of the step, so that resuming needs no state."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated

from pydantic import Field

from onsa.spec.component import Component


class Schedule(Component):
    """The base of every schedule.

    warmup: the first part of the run over which the rate rises in a line from zero: a share below 1, or whole steps.
    """

    warmup: Annotated[float, Field(ge=0)] = 0.1

    def factor(self, step: int, total: int) -> float:
        """What the base rate is multiplied by at ``step`` (from 0) of ``total``."""
        rise = round(self.warmup * total) if self.warmup < 1 else round(self.warmup)
        if step < rise:
            return (step + 1) / (rise + 1)
        return self.after_warmup((step - rise) / max(1, total - rise))

    @abstractmethod
    def after_warmup(self, progress: float) -> float:
        """The factor at a share of the way, in [0, 1), from the end of the warm-up to the end of the run."""
