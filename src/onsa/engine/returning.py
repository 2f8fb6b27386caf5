"""Returning: when memory that a process has freed goes back to the system.

The C library hands back large pieces as soon as they are freed, and every step asks for them anew, page by page; it is
told not to (:func:`keep`).

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

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's numbers, of malloc.h
GROWN = 1.15  # to how much of what a step held that had to ask for all of it


def keep() -> None:
    """From now on, keep what is freed until :func:`give_back`."""
    _tell("mallopt", M_MMAP_MAX, 0)
    _tell("mallopt", M_TRIM_THRESHOLD, 2**31 - 1)


def give_back() -> None:
    """Hand freed memory back now."""
    _tell("malloc_trim", 0)


def _tell(name: str, *given: int) -> None:
    """Other C libraries than glibc have no way to be told."""
    if sys.platform == "linux":
        function = getattr(ctypes.CDLL(None), name, None)
        if function is not None:
            function(*given)


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
