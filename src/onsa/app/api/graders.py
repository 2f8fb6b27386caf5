"""``/fine_tuning/alpha/graders``: a grader tried on an answer, or looked over, before a job is trained by it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict

from onsa.app.api.access import Object, Trainer
from onsa.app.api.asking import Models

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
async def run_grader(request: Request, key: Trainer, body: GraderRun) -> Object:
    models: Models = request.app.state.models
    return await models.say("/grade", body.model_dump())


@router.post("/fine_tuning/alpha/graders/validate")
async def validate_grader(request: Request, key: Trainer, body: GraderValidate) -> Object:
    models: Models = request.app.state.models
    await models.say("/grade", {"grader": body.grader})
    return {"grader": body.grader}
