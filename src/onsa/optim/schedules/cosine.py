"""Cosine: down along half a cosine (Loshchilov and Hutter 2017, eq. 5, without restarts)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field

from onsa.optim.schedules.base import Schedule


class Cosine(Schedule):
    """``floor + (1 - floor) · (1 + cos(π · step / total)) / 2``.

    floor: the share of the base rate at the end.
    """

    kind: ClassVar[str] = "cosine"
    floor: Annotated[float, Field(ge=0, le=1)] = 0.0

    def after_warmup(self, step: int, total: int, seen: Sequence[float]) -> float:
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * step / total)) / 2
