"""What the store says about a run: the run, its state, metrics, artifacts and relations. Imports no database."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from onsa.store.process import Worker


class State(StrEnum):
    """Where a run stands. ``died`` is never written down: a run that says running, whose process is gone, has died."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    FINISHED = "finished"
    FAILED = "failed"
    DIED = "died"


class Fields(TypedDict, total=False):
    """What is known about a run when it is created; text that is not given is empty.

    name: the run's id, in place of its identity's first digits.
    """

    name: str
    task: str
    model: str
    data: str
    adaptation: str
    recipe: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Run:
    """One run, as it stood when it was read.

    id: the identity's first eight digits, with ``-2``, ``-3``, … where the identity was run anew.
    identity: the SHA-256 over resolved recipe, data and base weights.
    data: the data file or hub id.
    created, updated: UTC; every write about the run updates it.
    folder: where its checkpoints and reports lie.
    recipe: the resolved recipe as plain values.
    summary: the headline metric, its value, and what else the run's maker wants in lists.
    worker: the process that started it last.
    """

    id: str
    identity: str
    state: State
    task: str
    model: str
    data: str
    adaptation: str
    created: datetime
    updated: datetime
    folder: Path
    recipe: dict[str, Any]
    summary: dict[str, Any]
    error: str | None
    worker: Worker | None


class Metric(NamedTuple):
    """One number of one step."""

    step: int
    name: str
    value: float


class Artifact(NamedTuple):
    """A file that a run made, or a folder of them. path: relative to the run's folder where it lies inside."""

    kind: str
    path: str
    sha256: str
    bytes: int


class Link(NamedTuple):
    """One run came out of another."""

    child: str
    parent: str
    relation: str
