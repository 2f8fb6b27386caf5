"""Follow a training run in the terminal, with Ctrl-C as pause."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING

from onsa.app.console import Follower, show_problems
from onsa.programs.train import Finished, Opened, Told
from onsa.spec.errors import Level
from onsa.spec.messages import say

if TYPE_CHECKING:
    from rich.console import Console


def follow(events: Iterator[Told], console: Console) -> Finished | None:
    """Show a run's events until it is finished, or until Ctrl-C pauses it (``None``).

    The first Ctrl-C lets the step end and a checkpoint be saved; a second one interrupts at once.
    """
    asked = False

    def pause(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        console.print(say("train-pausing"))

    before = signal.signal(signal.SIGINT, pause)
    try:
        with Follower(console) as follower:
            for event in events:
                if isinstance(event, Opened):
                    warnings = [p for p in event.prepared.problems if p.level is not Level.NOTE]
                    show_problems(console, warnings)
                if isinstance(event, Finished):
                    return event
                follower.see(event)
                if asked:
                    events.close()  # type: ignore[attr-defined]  # a generator: closing it pauses the run
                    console.print(say("train-paused"))
                    return None
    finally:
        signal.signal(signal.SIGINT, before)
    return None
