"""Cosine with restarts: down along half a cosine, several times (Loshchilov and Hutter 2017, eq. 5)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field

from onsa.optim.schedules.base import Schedule


class CosineRestarts(Schedule):
    """``(1 + cos(π · place)) / 2``, where ``place`` in [0, 1) is the place in a cycle; each starts at the full rate.

    cycles: descents, of equal length.
    """

    kind: ClassVar[str] = "cosine-restarts"
    cycles: Annotated[int, Field(ge=2)] = 3

    def after_warmup(self, step: int, total: int, seen: Sequence[float]) -> float:
        return (1 + math.cos(math.pi * (self.cycles * step % total) / total)) / 2
