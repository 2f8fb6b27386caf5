"""``/chat/completions/{id}`` and the list of them: completions that were asked with ``store: true``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict

from onsa.app.api.access import Asker, Object, Serving
from onsa.app.api.objects import deleted, listed, metadata_wanted
from onsa.app.api.values import Metadata
from onsa.store.completions import Kept
from onsa.store.records import Page

router = APIRouter()


class CompletionUpdate(BaseModel):
    """Other metadata for a kept completion."""

    model_config = ConfigDict(extra="forbid")
    metadata: Metadata | None


def _page(
    after: str | None = None,
    limit: Annotated[int, Query(ge=0, le=100)] = 20,
    order: Literal["asc", "desc"] = "asc",
) -> Page:
    return Page(after, limit, order)


Paged = Annotated[Page, Depends(_page)]


def _object(kept: Kept) -> Object:
    return {**kept.document, "metadata": kept.metadata}


@router.get("/chat/completions")
def list_completions(
    request: Request,
    key: Asker,
    service: Serving,
    page: Paged,
    model: str | None = None,
) -> Object:
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
    page: Paged,
) -> Object:
    kept = service.completions.get(key.project, completion_id)
    messages = [_message(f"{kept.id}-{number}", message) for number, message in enumerate(kept.messages)]
    messages = messages[::-1] if page.order == "desc" else messages
    names = [message["id"] for message in messages]
    begin = names.index(page.after) + 1 if page.after in names else 0
    end = begin + (page.limit or 0)
    return listed(messages[begin:end], end < len(messages))


def _message(name: str, message: dict[str, Any]) -> Object:
    content = message.get("content")
    parts = content if isinstance(content, list) else None
    text = "".join(part.get("text", "") for part in parts) if parts is not None else content
    return {"refusal": None, **message, "id": name, "content": text, "content_parts": parts}
