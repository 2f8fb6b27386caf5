"""Returning: memory that a process has freed goes back to the system.

Steps differ in their lengths, so what one frees seldom fits the next, and the C library keeps it: a process grows from
step to step, to twice of what a step takes. What is given back must be asked for again, page by page, which costs short
steps a third of their time. So it is given back where the process has grown, and only there.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass

import psutil

GROWN = 1.15  # to how much of what a step held that had to ask for all of it


def give_back() -> None:
    """Hand freed memory back now. Other C libraries than glibc have no way to be told."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)


@dataclass
class Returning:
    """Hands freed memory back when it is called after a step, where the process has grown since it last did so.

    first: the bytes that were held after the first step since then.
    """

    give_back: Callable[[], None] = give_back
    resident: Callable[[], int] = _resident
    first: int | None = None

    def __call__(self) -> None:
        held = self.resident()
        if self.first is None:
            self.first = held
        elif held > GROWN * self.first:
            self.give_back()
            self.first = None
