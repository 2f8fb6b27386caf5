"""``/files`` and ``/uploads``: what projects bring, whole or in parts, and what their jobs made."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Form, Query, UploadFile
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from onsa.app.api.access import Object, Serving, Trainer
from onsa.app.api.errors import RefusedError
from onsa.app.api.objects import deleted, file_object, listed, part_object, upload_object
from onsa.spec.messages import say
from onsa.store.blobs import chunks_of
from onsa.store.records import Page

router = APIRouter()
Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]
LEAST_S, MOST_S, BATCH_S = 3600, 2_592_000, 2_592_000
MOST_FILES = 10_000
NAME = 255  # letters of a file's name


class ExpiresAfter(BaseModel):
    """Seconds after its creation that a file is kept."""

    model_config = ConfigDict(extra="forbid")
    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=LEAST_S, le=MOST_S)]


class UploadCreate(BaseModel):
    """A file that will come in parts."""

    model_config = ConfigDict(extra="forbid")
    bytes: Annotated[int, Field(ge=0, le=8 << 30)]
    filename: Annotated[str, Field(min_length=1, max_length=NAME)]
    mime_type: Annotated[str, Field(min_length=1, max_length=NAME)]
    purpose: Purpose
    expires_after: ExpiresAfter | None = None


class UploadComplete(BaseModel):
    """The parts of a file, in their order."""

    model_config = ConfigDict(extra="forbid")
    part_ids: Annotated[list[str], Field(min_length=1)]
    md5: str | None = None


@router.post("/files")
def create_file(
    key: Trainer,
    service: Serving,
    file: UploadFile,
    purpose: Annotated[Purpose, Form()],
    anchor: Annotated[Literal["created_at"] | None, Form(alias="expires_after[anchor]")] = None,
    seconds: Annotated[int | None, Form(alias="expires_after[seconds]", ge=LEAST_S, le=MOST_S)] = None,
) -> Object:
    if (anchor is None) is not (seconds is None):
        raise RefusedError(400, say("api-expires"), "expires_after")
    lasts_s = seconds or (BATCH_S if purpose == "batch" else None)
    name = (file.filename or "")[:NAME]
    return file_object(service.files.create(key.project, name, purpose, chunks_of(file.file), lasts_s))


@router.get("/files")
def list_files(
    key: Trainer,
    service: Serving,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=MOST_FILES)] = MOST_FILES,
    order: Literal["asc", "desc"] = "desc",
    purpose: str | None = None,
) -> Object:
    found, more = service.files.page(key.project, Page(after, limit, order), purpose)
    return listed([file_object(file) for file in found], more)


@router.get("/files/{file_id}")
def retrieve_file(key: Trainer, service: Serving, file_id: str) -> Object:
    return file_object(service.files.get(key.project, file_id))


@router.delete("/files/{file_id}")
def delete_file(key: Trainer, service: Serving, file_id: str) -> Object:
    service.files.remove(key.project, file_id)
    return deleted("file", file_id)


@router.get("/files/{file_id}/content", response_class=StreamingResponse)
def file_content(key: Trainer, service: Serving, file_id: str) -> StreamingResponse:
    file = service.files.get(key.project, file_id)
    headers = {"content-length": str(file.bytes), "x-content-type-options": "nosniff"}
    return StreamingResponse(service.files.content(file), media_type="application/octet-stream", headers=headers)


@router.post("/uploads")
def create_upload(key: Trainer, service: Serving, body: UploadCreate) -> Object:
    lasts_s = body.expires_after.seconds if body.expires_after else BATCH_S if body.purpose == "batch" else None
    made = service.uploads.create(key.project, body.filename, body.purpose, body.bytes, body.mime_type, lasts_s)
    return upload_object(made, None)


@router.post("/uploads/{upload_id}/parts")
def add_part(key: Trainer, service: Serving, upload_id: str, data: UploadFile) -> Object:
    return part_object(service.uploads.add_part(key.project, upload_id, chunks_of(data.file)))


@router.post("/uploads/{upload_id}/complete")
def complete_upload(key: Trainer, service: Serving, upload_id: str, body: UploadComplete) -> Object:
    made = service.uploads.complete(key.project, upload_id, body.part_ids, body.md5)
    return upload_object(made, service.files.get(key.project, made.file or ""))


@router.post("/uploads/{upload_id}/cancel")
def cancel_upload(key: Trainer, service: Serving, upload_id: str) -> Object:
    return upload_object(service.uploads.cancel(key.project, upload_id), None)
