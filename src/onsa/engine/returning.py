"""Returning: memory that a process has freed goes back to the system.

Steps differ in their lengths, so what one frees seldom fits the next, and the C library keeps it: a process grows from
step to step, to twice of what a step takes. Giving it back costs a walk through all that is held, so it is done as
often as takes a small share of the time.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

SHARE = 0.02  # of the time that may be spent


def _trim() -> Callable[[int], int] | None:
    """The C library's way to give memory back; others than glibc have none."""
    if sys.platform != "linux":
        return None
    found: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return found


@dataclass
class Returning:
    """Gives freed memory back when it is called, unless it has just done so.

    ends: when the last time ended; ``spent`` is what it took, in seconds.
    """

    trim: Callable[[int], int] | None = field(default_factory=_trim)
    clock: Callable[[], float] = time.monotonic
    ends: float = 0.0
    spent: float = 0.0

    def __call__(self) -> None:
        begins = self.clock()
        if self.trim is None or (begins - self.ends) * SHARE < self.spent:
            return
        self.trim(0)
        self.ends = self.clock()
        self.spent = self.ends - begins
