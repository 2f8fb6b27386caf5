"""``/fine_tuning/jobs``: jobs, their events and checkpoints, and who else may ask a checkpoint."""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from onsa.app.api.access import Admin, Object, Serving, Trainer
from onsa.app.api.errors import RefusedError
from onsa.app.api.models import known_base
from onsa.app.api.objects import (
    checkpoint_object,
    deleted,
    event_object,
    job_object,
    listed,
    metadata_wanted,
    permission_object,
)
from onsa.app.api.values import Metadata
from onsa.spec.errors import MissingError
from onsa.spec.messages import say
from onsa.store.job import Order
from onsa.store.records import Page

router = APIRouter()
Auto = Literal["auto"]
SEEDS = 2**31  # as large as every client's integers


class _Given(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Hyperparameters(_Given):
    """What every method has."""

    n_epochs: Auto | Annotated[int, Field(ge=1, le=50)] | None = None
    batch_size: Auto | Annotated[int, Field(ge=1, le=256)] | None = None
    learning_rate_multiplier: Auto | Annotated[float, Field(gt=0)] | None = None


class DpoHyperparameters(Hyperparameters):
    beta: Auto | Annotated[float, Field(gt=0, le=2)] | None = None


class ReinforcementHyperparameters(Hyperparameters):
    """Models that think before they answer have a choice of ``reasoning_effort``; those here have none.

    Held-out prompts are answered once, greedily, so that ``eval_samples`` has none either.
    """

    compute_multiplier: Auto | Annotated[float, Field(gt=0, le=10)] | None = None
    eval_interval: Auto | Annotated[int, Field(ge=1)] | None = None
    eval_samples: Auto | None = None
    reasoning_effort: Literal["default"] | None = None


class Supervised(_Given):
    hyperparameters: Hyperparameters | None = None
    recipe: dict[str, Any] | None = None


class Dpo(_Given):
    hyperparameters: DpoHyperparameters | None = None
    recipe: dict[str, Any] | None = None


class Reinforcement(_Given):
    grader: dict[str, Any]
    hyperparameters: ReinforcementHyperparameters | None = None
    recipe: dict[str, Any] | None = None


class Method(_Given):
    """One of three, with its settings. ``recipe``, in any of them, lays sections of a recipe over what is usual."""

    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: Supervised | None = None
    dpo: Dpo | None = None
    reinforcement: Reinforcement | None = None


class Wandb(_Given):
    project: str
    entity: str | None = None
    name: str | None = None
    tags: list[str] | None = None


class Integration(_Given):
    type: Literal["wandb"]
    wandb: Wandb


class JobCreate(_Given):
    """An order; ``hyperparameters`` is the older place of a supervised method's."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    training_file: str
    validation_file: str | None = None
    hyperparameters: Hyperparameters | None = None
    method: Method | None = None
    seed: Annotated[int, Field(ge=0, lt=SEEDS)] | None = None
    suffix: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    metadata: Metadata | None = None
    integrations: list[Integration] | None = None


class PermissionCreate(_Given):
    project_ids: Annotated[list[str], Field(min_length=1)]


@router.post("/fine_tuning/jobs")
def create_job(key: Trainer, service: Serving, body: JobCreate) -> Object:
    alias = service.aliases.find(key.project, body.model)
    model = body.model if alias is None else alias.target(key.id)  # now: it may lead elsewhere when the job goes on
    if not known_base(service, key.project, model):
        raise RefusedError(400, say("api-no-model", model=body.model), "model", "model_not_found")
    for param in ("training_file", "validation_file"):
        name = getattr(body, param)
        if name is None:
            continue
        try:
            file = service.files.get(key.project, name)
        except MissingError as error:
            raise RefusedError(400, str(error), param, "file_not_found") from None
        if file.purpose != "fine-tune":
            raise RefusedError(400, say("api-purpose", file=name, purpose=file.purpose), param, "invalid_file_purpose")
    seed = secrets.randbelow(SEEDS) if body.seed is None else body.seed
    integrations = None if body.integrations is None else [one.model_dump(mode="json") for one in body.integrations]
    beside = (body.validation_file, body.suffix, body.metadata, integrations)
    order = Order(model, body.training_file, _method(body), seed, *beside)
    return job_object(service.jobs.create(key.project, order))


def _method(body: JobCreate) -> Object:
    """The method of an order, with the settings of that method alone, over those of the older field.

    Raises:
        RefusedError: the method lacks its settings.
    """
    method = body.method or Method(type="supervised")
    chosen = getattr(method, method.type)
    if chosen is None:
        if method.type == "reinforcement":
            raise RefusedError(400, say("api-no-grader"), "method.reinforcement", "missing_required_parameter")
        chosen = Supervised() if method.type == "supervised" else Dpo()
    settings = chosen.model_dump(mode="json", exclude_none=True)
    usual = dict.fromkeys(Hyperparameters.model_fields, "auto")
    older = {} if body.hyperparameters is None else body.hyperparameters.model_dump(exclude_none=True)
    settings["hyperparameters"] = {**usual, **older, **settings.get("hyperparameters", {})}
    return {"type": method.type, method.type: settings}


@router.get("/fine_tuning/jobs")
def list_jobs(
    request: Request,
    key: Trainer,
    service: Serving,
    after: str | None = None,
    limit: Annotated[int, Query(ge=0, le=100)] = 20,
) -> Object:
    found, more = service.jobs.page(key.project, Page(after, limit), metadata_wanted(request.query_params))
    return listed([job_object(job) for job in found], more)


@router.get("/fine_tuning/jobs/{job_id}")
def retrieve_job(key: Trainer, service: Serving, job_id: str) -> Object:
    return job_object(service.jobs.get(key.project, job_id))


@router.post("/fine_tuning/jobs/{job_id}/cancel")
def cancel_job(key: Trainer, service: Serving, job_id: str) -> Object:
    return job_object(service.jobs.cancel(key.project, job_id))


@router.post("/fine_tuning/jobs/{job_id}/pause")
def pause_job(key: Trainer, service: Serving, job_id: str) -> Object:
    return job_object(service.jobs.pause(key.project, job_id))


@router.post("/fine_tuning/jobs/{job_id}/resume")
def resume_job(key: Trainer, service: Serving, job_id: str) -> Object:
    return job_object(service.jobs.resume(key.project, job_id))


@router.get("/fine_tuning/jobs/{job_id}/events")
def list_events(
    key: Trainer,
    service: Serving,
    job_id: str,
    after: str | None = None,
    limit: Annotated[int, Query(ge=0, le=1000)] = 20,
) -> Object:
    found, more = service.jobs.events(key.project, job_id, Page(after, limit))
    return listed([event_object(event) for event in found], more)


@router.get("/fine_tuning/jobs/{job_id}/checkpoints")
def list_checkpoints(
    key: Trainer,
    service: Serving,
    job_id: str,
    after: str | None = None,
    limit: Annotated[int, Query(ge=0, le=100)] = 10,
) -> Object:
    found, more = service.jobs.checkpoints(key.project, job_id, Page(after, limit))
    return listed([checkpoint_object(checkpoint) for checkpoint in found], more)


@router.post("/fine_tuning/checkpoints/{model}/permissions")
def create_permissions(key: Admin, service: Serving, model: str, body: PermissionCreate) -> Object:
    granted = service.models.grant(model, body.project_ids)
    return listed([permission_object(one) for one in granted], False)


def _permissions_page(
    after: str | None = None,
    limit: Annotated[int, Query(ge=0, le=100)] = 10,
    order: Literal["ascending", "descending"] = "descending",
) -> Page:
    return Page(after, limit, "asc" if order == "ascending" else "desc")


@router.get("/fine_tuning/checkpoints/{model}/permissions")
def list_permissions(
    key: Admin,
    service: Serving,
    model: str,
    page: Annotated[Page, Depends(_permissions_page)],
    project_id: str | None = None,
) -> Object:
    found, more = service.models.grants(model, page, project_id)
    return listed([permission_object(one) for one in found], more)


@router.delete("/fine_tuning/checkpoints/{model}/permissions/{permission_id}")
def delete_permission(key: Admin, service: Serving, model: str, permission_id: str) -> Object:
    service.models.revoke(model, permission_id)
    return deleted("checkpoint.permission", permission_id)
