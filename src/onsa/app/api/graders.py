"""``/fine_tuning/alpha/graders``: a grader tried on an answer, or looked over, before a job is trained by it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict
from starlette.concurrency import run_in_threadpool

from onsa.app.api.access import Object, Service, Serving, Trainer
from onsa.app.api.asking import Models
from onsa.programs.jobs.graders import reward_of, speakers
from onsa.store.key import Key

router = APIRouter()


class GraderRun(BaseModel):
    """A grader, an answer, and the row that it answers."""

    model_config = ConfigDict(extra="forbid")
    grader: dict[str, Any]
    model_sample: str
    item: dict[str, Any] | None = None


class GraderValidate(BaseModel):
    model_config = ConfigDict(extra="forbid")
    grader: dict[str, Any]


@router.post("/fine_tuning/alpha/graders/run")
async def run_grader(request: Request, key: Trainer, service: Serving, body: GraderRun) -> Object:
    models: Models = request.app.state.models
    reward = await run_in_threadpool(_reward, service, key, body.grader)
    return await models.say("/grade", {**body.model_dump(), "reward": reward})


@router.post("/fine_tuning/alpha/graders/validate")
async def validate_grader(request: Request, key: Trainer, service: Serving, body: GraderValidate) -> Object:
    models: Models = request.app.state.models
    await models.say("/grade", {"reward": await run_in_threadpool(_reward, service, key, body.grader)})
    return {"grader": body.grader}


def _reward(service: Service, key: Key, grader: Object) -> Object:
    return reward_of(grader, speakers(service.database, key.project, key.id))
