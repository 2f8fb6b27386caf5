"""Schedule: the learning rate as a pure function of the step and of what was measured before it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field

from onsa.spec.component import Component


class Schedule(Component):
    """The base of every schedule.

    warmup: the first part of the run over which the rate rises in a line from zero: a share below 1, or whole steps.

    ``watches`` tells whether the kind needs validation rows to be measured during the run.
    """

    watches: ClassVar[bool] = False

    warmup: Annotated[float, Field(ge=0)] = 0.1

    def factor(self, step: int, total: int, seen: Sequence[float] = ()) -> float:
        """What the base rate is multiplied by at ``step`` (from 0) of ``total``.

        Args:
            seen: the watched validation metric at every evaluation so far, with the sign at which less is better.
        """
        rise = self.rise(total)
        if step < rise:
            return self.in_warmup(step, rise)
        return self.after_warmup(step - rise, max(1, total - rise), seen)

    def rise(self, total: int) -> int:
        """Steps of the warm-up."""
        return steps_of(self.warmup, total)

    def in_warmup(self, step: int, rise: int) -> float:
        """The factor at a step of a warm-up over ``rise`` steps."""
        return (step + 1) / (rise + 1)

    @abstractmethod
    def after_warmup(self, step: int, total: int, seen: Sequence[float]) -> float:
        """The factor at a step counted from the end of the warm-up, of the ``total`` steps after it."""


def steps_of(value: float, total: int) -> int:
    """Steps given as a share of ``total`` below 1, or as they are."""
    return round(value * total) if value < 1 else round(value)
