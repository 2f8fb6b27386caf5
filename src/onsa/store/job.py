"""What the store says about a job: its order, where it stands, and who has it. Imports no database."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from onsa.store.process import Worker

STRANGE = re.compile(r"[^A-Za-z0-9._-]+")  # what a model's name, which stands in paths and headers, does not have


CHECKPOINT_METRICS = {"train_loss": ("train_loss",), "train_token_accuracy": ("train_mean_token_accuracy",)}
# The whole validation file is measured each time.
VALID_METRICS = {
    "loss": ("valid_loss", "full_valid_loss"),
    "token_accuracy": ("valid_mean_token_accuracy", "full_valid_mean_token_accuracy"),
}


class Status(StrEnum):
    """Where a job stands."""

    VALIDATING = "validating_files"
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Wish(StrEnum):
    """What a user wants of a job that a worker has."""

    PAUSE = "pause"
    CANCEL = "cancel"


ENDS = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELLED})
HELD = frozenset({Status.VALIDATING, Status.RUNNING})  # a worker may have these


@dataclass(frozen=True, slots=True)
class Order:
    """What a job is asked to do, as it came. method: its type, and under that type's name its settings."""

    model: str
    training_file: str
    method: dict[str, Any]
    seed: int
    validation_file: str | None = None
    suffix: str | None = None
    metadata: dict[str, str] | None = None
    integrations: list[dict[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it stood when it was read. Times are seconds since 1970, UTC.

    run: the run that it became. wanted: what a user wants of it now.
    """

    id: str
    project: str
    created: float
    status: Status
    order: Order
    error: dict[str, Any] | None
    finished: float | None
    estimated: float | None
    model: str | None
    result_files: list[str]
    trained_tokens: int | None
    run: str | None
    wanted: Wish | None
    fence: int
    lease_until: float | None
    attempts: int
    worker: Worker | None


@dataclass(frozen=True, slots=True)
class Lease:
    """A job in a worker's hands."""

    job: str
    fence: int


@dataclass(frozen=True, slots=True)
class JobEvent:
    """Something to tell about a job. data: numbers, of ``type`` metrics."""

    message: str
    level: str = "info"
    type: str = "message"
    data: dict[str, Any] = field(default_factory=dict)


def model_name(job: Job, step: int | None = None) -> str:
    """What a job's model, or the checkpoint at a step, is called."""
    base = job.order.model.removeprefix("ft:").split(":")[0].split("/")[-1]
    suffix = STRANGE.sub("-", job.order.suffix or "")
    name = f"ft:{base}:{job.project.removeprefix('proj_')[:8].lower()}:{suffix}:{job.id[-8:]}"
    return name if step is None else f"{name}:ckpt-step-{step}"


def told_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """A run's metrics by OpenAI's names, as far as it has such."""
    names = CHECKPOINT_METRICS | VALID_METRICS
    return {told: metrics[name] for name, all_told in names.items() if name in metrics for told in all_told}
