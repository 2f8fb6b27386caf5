"""Objects of OpenAI's API, as plain JSON values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Row

from onsa.store.files import File, Upload
from onsa.store.job import Job, Status, told_metrics
from onsa.store.models import Served
from onsa.store.records import loaded

Object = dict[str, Any]
METADATA_QUERY = re.compile(r"metadata\[(.+)\]")
HYPERPARAMETERS = ("n_epochs", "batch_size", "learning_rate_multiplier")


def listed(data: Sequence[Object], more: bool) -> Object:
    """A page of a list."""
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"object": "list", "data": list(data), "has_more": more, "first_id": first, "last_id": last}


def metadata_wanted(params: Mapping[str, str]) -> dict[str, str] | None:
    """What ``metadata[key]=value`` in a query asks for; ``metadata=null`` for what has none."""
    if params.get("metadata") == "null":
        return None
    named = {name: METADATA_QUERY.fullmatch(name) for name in params}
    return {match[1]: params[name] for name, match in named.items() if match is not None}


def deleted(kind: str, name: str) -> Object:
    return {"id": name, "object": kind, "deleted": True}


def file_object(file: File) -> Object:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": int(file.created),
        "expires_at": _whole(file.expires),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


def upload_object(upload: Upload, file: File | None) -> Object:
    return {
        "id": upload.id,
        "object": "upload",
        "bytes": upload.bytes,
        "created_at": int(upload.created),
        "expires_at": int(upload.expires),
        "filename": upload.filename,
        "purpose": upload.purpose,
        "status": upload.status,
        "file": file_object(file) if file else None,
    }


def part_object(part: Row[Any]) -> Object:
    return {"id": part.id, "object": "upload.part", "created_at": int(part.created), "upload_id": part.upload}


def model_object(served: Served) -> Object:
    return {"id": served.id, "object": "model", "created": int(served.created), "owned_by": served.project}


def job_object(job: Job) -> Object:
    """A job. One that rests says ``queued``, as there is no word for it in the specification, and ``paused`` beside."""
    order, paused = job.order, job.status is Status.PAUSED
    settings = order.method.get(order.method["type"]) or {}
    chosen = settings.get("hyperparameters") or {}
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": int(job.created),
        "error": job.error,
        "fine_tuned_model": job.model,
        "finished_at": _whole(job.finished),
        "hyperparameters": {name: chosen.get(name) or "auto" for name in HYPERPARAMETERS},
        "model": order.model,
        "organization_id": job.project,
        "result_files": job.result_files,
        "seed": order.seed,
        "status": (Status.QUEUED if paused else job.status).value,
        "paused": paused,
        "trained_tokens": job.trained_tokens,
        "training_file": order.training_file,
        "validation_file": order.validation_file,
        "estimated_finish": _whole(job.estimated),
        "integrations": order.integrations or [],
        "metadata": order.metadata,
        "method": order.method,
    }


def event_object(event: Row[Any]) -> Object:
    return {
        "id": event.id,
        "object": "fine_tuning.job.event",
        "created_at": int(event.created),
        "level": event.level,
        "message": event.message,
        "type": event.type,
        "data": loaded(event.data),
    }


def checkpoint_object(checkpoint: Row[Any]) -> Object:
    known = told_metrics(loaded(checkpoint.metrics))
    return {
        "id": checkpoint.id,
        "object": "fine_tuning.job.checkpoint",
        "created_at": int(checkpoint.created),
        "fine_tuned_model_checkpoint": checkpoint.model,
        "fine_tuning_job_id": checkpoint.job,
        "step_number": checkpoint.step,
        "metrics": {"step": checkpoint.step, **known},
    }


def permission_object(permission: Row[Any]) -> Object:
    return {
        "id": permission.id,
        "object": "checkpoint.permission",
        "created_at": int(permission.created),
        "project_id": permission.granted,
    }


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)
