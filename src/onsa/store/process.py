"""Which process works on a run, and whether it still lives.

A pid alone is no name: the system gives it out again. With the time at which the process began, and the host, it is.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

# The start time that a system reports for one process wavers by a clock tick, and by small corrections of the clock.
SAME_START_S = 2.0


@dataclass(frozen=True, slots=True)
class Worker:
    """A process on a host. started: seconds since 1970, UTC."""

    pid: int
    started: float
    host: str

    def same(self, other: Worker) -> bool:
        """Whether both are one process."""
        near = abs(self.started - other.started) < SAME_START_S
        return near and (self.pid, self.host) == (other.pid, other.host)


def this_process() -> Worker:
    """The process that asks."""
    return process_of(os.getpid())


def process_of(pid: int) -> Worker:
    """A process of this host that is there, or waited for by who started it."""
    import psutil  # here, since listing runs that are not running does not need it

    return Worker(pid, psutil.Process(pid).create_time(), platform.node())


def lives(worker: Worker) -> bool:
    """Whether the process is still there. One on another host cannot be seen from here, and counts as living."""
    if worker.host != platform.node():
        return True
    import psutil

    try:
        found = psutil.Process(worker.pid)
        # A zombie has ended; only its parent has not asked about it yet.
        return found.status() != psutil.STATUS_ZOMBIE and worker.same(
            Worker(worker.pid, found.create_time(), worker.host)
        )
    except psutil.NoSuchProcess:
        return False


def runs(worker: Worker) -> bool:
    """Whether the process is seen to be there, on this host, and is not stopped; however slowly it comes forward."""
    import psutil

    try:
        here = worker.host == platform.node() and lives(worker)
        return here and psutil.Process(worker.pid).status() != psutil.STATUS_STOPPED
    except psutil.NoSuchProcess:
        return False


def orphaned(over: Callable[[], None], parent: int) -> None:
    """Call when the process that started this one is gone; returns at once, and looks from a thread.

    Args:
        parent: its pid, as it said itself: it may be gone already.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        over()

    threading.Thread(target=watch, daemon=True).start()
