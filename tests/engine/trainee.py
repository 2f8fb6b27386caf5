"""A training run in a process of its own, which can be told at what moment of its work with files to die."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from fnmatch import fnmatchcase
from multiprocessing.connection import Connection
from typing import Any


@dataclass(frozen=True)
class Moment:
    """The ``count``-th time that Python raises an audit event on a path that matches.

    event: ``open``, ``os.rename``, ``os.remove`` or ``os.mkdir``: raised just before the operation.
    halve: cut the file in two first, as if it had been half written.
    """

    event: str
    path: str
    count: int = 1
    halve: bool = False


def train(recipe: dict[str, Any], home: str, opened: Connection, moment: Moment | None) -> None:
    """Train to the end, or to the moment of death; says when the run has been opened."""
    os.environ |= {"ONSA_HOME": home, "ONSA_LANG": "en", "HF_HUB_OFFLINE": "1"}
    import torch

    from onsa.programs.train import Opened
    from onsa.programs.train import train as events
    from onsa.spec.recipe import parse_recipe

    torch.set_num_threads(1)
    if moment is not None:
        _die_at(moment)
    for event in events(parse_recipe(recipe)):
        if isinstance(event, Opened):
            opened.send(True)


def _die_at(moment: Moment) -> None:
    seen = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        if event != moment.event or not fnmatchcase(str(args[0]), moment.path):
            return
        seen += 1
        if seen == moment.count:
            if moment.halve:
                os.truncate(args[0], os.path.getsize(args[0]) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
