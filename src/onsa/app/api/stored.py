"""``/chat/completions/{id}`` and the list of them: completions that were asked with ``store: true``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict

from onsa.app.api.access import Asker, Object, Serving
from onsa.app.api.objects import deleted, listed, metadata_wanted
from onsa.app.api.values import Metadata
from onsa.store.completions import Kept
from onsa.store.records import Page

router = APIRouter()
Order = Literal["asc", "desc"]
Limit = Annotated[int, Query(ge=0, le=100)]


class CompletionUpdate(BaseModel):
    """Other metadata for a kept completion."""

    model_config = ConfigDict(extra="forbid")
    metadata: Metadata | None


def _object(kept: Kept) -> Object:
    return {**kept.document, "metadata": kept.metadata}


@router.get("/chat/completions")
def list_completions(
    request: Request,
    key: Asker,
    service: Serving,
    after: str | None = None,
    limit: Limit = 20,
    order: Order = "asc",
) -> Object:
    page, model = Page(after, limit, order), request.query_params.get("model")
    found, more = service.completions.page(key.project, page, model, metadata_wanted(request.query_params))
    return listed([_object(kept) for kept in found], more)


@router.get("/chat/completions/{completion_id}")
def retrieve_completion(key: Asker, service: Serving, completion_id: str) -> Object:
    return _object(service.completions.get(key.project, completion_id))


@router.post("/chat/completions/{completion_id}")
def update_completion(key: Asker, service: Serving, completion_id: str, body: CompletionUpdate) -> Object:
    return _object(service.completions.note(key.project, completion_id, body.metadata or {}))


@router.delete("/chat/completions/{completion_id}")
def delete_completion(key: Asker, service: Serving, completion_id: str) -> Object:
    service.completions.remove(key.project, completion_id)
    return deleted("chat.completion.deleted", completion_id)


@router.get("/chat/completions/{completion_id}/messages")
def completion_messages(
    key: Asker,
    service: Serving,
    completion_id: str,
    after: str | None = None,
    limit: Limit = 20,
    order: Order = "asc",
) -> Object:
    kept = service.completions.get(key.project, completion_id)
    messages = [_message(f"{kept.id}-{number}", message) for number, message in enumerate(kept.messages)]
    messages = messages[::-1] if order == "desc" else messages
    names = [message["id"] for message in messages]
    begin = names.index(after) + 1 if after in names else 0
    return listed(messages[begin : begin + limit], begin + limit < len(messages))


def _message(name: str, message: dict[str, Any]) -> Object:
    content = message.get("content")
    parts = content if isinstance(content, list) else None
    text = "".join(part.get("text", "") for part in parts) if parts is not None else content
    return {"refusal": None, **message, "id": name, "content": text, "content_parts": parts}
