"""``/chat/completions``: answers to conversations, at once or as they come."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from onsa.app.api.access import Asker, Serving
from onsa.app.api.asking import (
    Line,
    Lines,
    Models,
    Sampled,
    StreamOptions,
    Target,
    Usage,
    event,
    failed,
    meant,
    streamed,
    while_there,
    whole,
)
from onsa.app.api.errors import RefusedError
from onsa.app.api.tools import Tooling, tooling
from onsa.app.api.values import Metadata
from onsa.spec.messages import say

router = APIRouter()
FINISH = {"stop": "stop", "length": "length", "cancelled": "stop", "failed": "stop"}
OBJECT_SCHEMA = {"type": "object"}


class JsonSchema(BaseModel):
    """A schema under a name; ``strict`` or not, the answer keeps to it."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)
    name: Annotated[str, Field(max_length=64)]
    shape: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatCreate(Sampled):
    """A conversation to go on with. Below ``metadata`` stand fields that are taken and change nothing here."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=0)] | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    functions: list[dict[str, Any]] | None = None
    function_call: str | dict[str, Any] | None = None
    modalities: list[Literal["text", "audio"]] | None = None
    stream_options: StreamOptions | None = None
    store: bool | None = None
    metadata: Metadata | None = None
    audio: dict[str, Any] | None = None
    moderation: dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    prediction: dict[str, Any] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None
    reasoning_effort: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    verbosity: str | None = None
    web_search_options: dict[str, Any] | None = None

    def asked(self, target: Target, sender: str, tools: Tooling) -> Line:
        """What is handed on to the models.

        Raises:
            RefusedError: what no model here can do.
        """
        if self.modalities and "audio" in self.modalities:
            raise RefusedError(400, say("api-no-audio"), "modalities", "unsupported_value")
        if self.top_logprobs and not self.logprobs:
            raise RefusedError(400, say("api-top-logprobs"), "top_logprobs", "invalid_value")
        most = self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens
        return {
            **self.drawn(),
            "target": target.handed,
            "sender": sender,
            "messages": self.messages,
            "tools": tools.shown,
            "most": most,
            "logprobs": (self.top_logprobs or 0) if self.logprobs else None,
            "schema": tools.schema or self._schema(),
        }

    def _schema(self) -> Line | None:
        wanted = self.response_format
        if wanted is None or wanted.type == "text":
            return None
        if wanted.type == "json_object":
            return OBJECT_SCHEMA
        if wanted.json_schema is None or wanted.json_schema.shape is None:
            raise RefusedError(400, say("api-no-schema"), "response_format.json_schema", "missing_required_parameter")
        return wanted.json_schema.shape


@dataclass
class Answered:
    """One choice, as it grows. told: letters that a stream was told."""

    text: str = ""
    told: int = 0
    finish: str | None = None
    logprobs: list[Line] = field(default_factory=list)

    def tell(self, ready: int) -> str:
        """What of the text up to here a stream was not told yet."""
        new, self.told = self.text[self.told : ready], max(self.told, ready)
        return new


@dataclass
class Completion:
    """A completion, as it grows from the models' lines."""

    target: Target
    body: ChatCreate
    tools: Tooling
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))
    choices: list[Answered] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)

    def __post_init__(self) -> None:
        self.choices = [Answered() for _ in range(self.body.n or 1)]

    def take(self, line: Line) -> list[Line]:
        """Take a line up; returns what of it a stream tells, as the choices of chunks."""
        failed(line)
        choice, number = self.choices[line["i"]], line["i"]
        if "done" not in line:
            choice.text += line["text"]
            logprobs = [told(token) for token in line.get("tokens", [])]
            choice.logprobs += logprobs
            new = choice.tell(self.tools.ready(choice.text))
            return [_choice(number, {"content": new}, _logprobs(self.body, logprobs))] if new or logprobs else []
        self.usage.take(line)
        message, calls = self.tools.message(choice.text)
        choice.finish = "tool_calls" if calls else FINISH[line["done"]]
        delta: Line = {"tool_calls": [{"index": place, **call} for place, call in enumerate(calls)]} if calls else {}
        if "function_call" in message:
            choice.finish, delta = "function_call", {"function_call": message["function_call"]}
        elif not calls and (rest := choice.tell(len(choice.text))):
            delta = {"content": rest}
        return [_choice(number, delta, None, choice.finish)]

    def document(self) -> Line:
        """The whole of it."""
        choices = [
            {
                "index": number,
                "message": {"role": "assistant", "refusal": None, **self.tools.message(choice.text)[0]},
                "logprobs": _logprobs(self.body, choice.logprobs),
                "finish_reason": choice.finish,
            }
            for number, choice in enumerate(self.choices)
        ]
        return {**self._head("chat.completion"), "choices": choices, "usage": self.usage.document()}

    def chunk(self, choices: list[Line], usage: Line | None = None) -> Line:
        """A part of it."""
        more = {"usage": usage} if self._counts else {}
        return {**self._head("chat.completion.chunk"), "choices": choices, **more}

    async def stream(self, lines: Lines, keep: Callable[[], Awaitable[None]]) -> AsyncIterator[bytes]:
        """The parts as server-sent events, the last one with what it took; ``keep`` is called at the end."""
        for number in range(len(self.choices)):
            delta = {"role": "assistant", "content": "", "refusal": None}
            yield event(self.chunk([_choice(number, delta)]))
        async for _, line in lines:
            for choice in self.take(line):
                yield event(self.chunk([choice]))
        whole(choice.finish for choice in self.choices)
        await keep()
        if self._counts:
            yield event(self.chunk([], self.usage.document()))
        yield event("[DONE]")

    @property
    def _counts(self) -> bool:
        return bool(self.body.stream_options and self.body.stream_options.include_usage)

    def _head(self, kind: str) -> Line:
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.target.name}
        return {**head, "service_tier": "default", "system_fingerprint": self.target.fingerprint}


def _choice(number: int, delta: Line, logprobs: Line | None = None, finish: str | None = None) -> Line:
    return {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": finish}


def told(token: Line) -> Line:
    """A token with its log-probability, as OpenAI's objects have it."""
    top = [{**_letters(said), "logprob": logprob} for said, logprob in token["top"]]
    return {**_letters(token["bytes"]), "logprob": token["logprob"], "top_logprobs": top}


def _letters(said: list[int]) -> Line:
    return {"token": bytes(said).decode(errors="replace"), "bytes": said}


def _logprobs(body: ChatCreate, tokens: list[Line]) -> Line | None:
    return {"content": tokens, "refusal": None} if body.logprobs else None


@router.post("/chat/completions")
async def create_chat(request: Request, key: Asker, service: Serving, body: ChatCreate) -> Response:
    models: Models = request.app.state.models
    target = await meant(service, key, body.model, body.user or body.safety_identifier)
    tools = tooling(body.tools, body.tool_choice, body.functions, body.function_call)
    lines = await while_there(request, models.lines([body.asked(target, key.project, tools)]))
    completion = Completion(target, body, tools)

    async def keep() -> None:
        if body.store:
            kept = (completion.document(), body.messages, body.metadata or {})
            await run_in_threadpool(service.completions.keep, key.project, *kept)

    if body.stream:
        return streamed(target, completion.stream(lines, keep))

    async def taken() -> Line:
        async for _, line in lines:
            completion.take(line)
        whole(choice.finish for choice in completion.choices)
        await keep()
        return completion.document()

    return JSONResponse(await while_there(request, taken()), headers=target.headers)
