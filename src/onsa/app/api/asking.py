"""Asking: what a request for answers has in common, and the way to the process of the models.

What is handed on is JSON: ``target`` (a model), ``messages`` (with ``tools``) or ``prompt`` (text or tokens), how
answers are drawn (``n``, ``most``, ``temperature``, ``top_p``, ``seed``, ``stop``, penalties, ``logit_bias``,
``schema``), what is told beside them (``logprobs``, ``echo``), and the ``sender``, in whose turn it is answered. What
comes back are the lines of :mod:`onsa.app.host`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, field_validator
from starlette.concurrency import run_in_threadpool

from onsa.app.api.access import Service
from onsa.app.api.errors import BROKEN, RefusedError
from onsa.models.catalog import catalog
from onsa.spec.messages import say
from onsa.store.key import Key
from onsa.store.models import Served

SEEDS = 2**63
POLL_S = 0.25
LEAST_P = 1e-6  # at 0 the likeliest token alone is left
Result = TypeVar("Result")
Line = dict[str, Any]


class Sampled(BaseModel):
    """What every request for answers has."""

    model_config = ConfigDict(extra="forbid")
    model: Annotated[str, Field(min_length=1, max_length=256)]
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-SEEDS, lt=SEEDS)] | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1024)] | None = None
    stream: bool | None = None
    user: str | None = None

    @field_validator("logit_bias")
    @classmethod
    def _tokens(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        kept = {token: bias for token, bias in (value or {}).items() if bias != 0}
        if not all(token.isdecimal() and len(token) < 10 for token in kept):
            raise ValueError("its keys are tokens, by their numbers")
        return kept or None

    def drawn(self) -> Line:
        """How answers are drawn."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return {
            "n": self.n or 1,
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_p": 1.0 if self.top_p is None else max(self.top_p, LEAST_P),
            "seed": secrets.randbelow(SEEDS) if self.seed is None else self.seed % SEEDS,
            "stop": [one for one in stop if one],
            "frequency_penalty": self.frequency_penalty or 0.0,
            "presence_penalty": self.presence_penalty or 0.0,
            "logit_bias": self.logit_bias or {},
        }


class StreamOptions(BaseModel):
    """Of a stream: whether its last part says what it took. Parts are not padded to hide their length."""

    model_config = ConfigDict(extra="forbid")
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


@dataclass
class Usage:
    """The tokens of a request. Those of a prompt count once, however many answers it has."""

    prompt: dict[int, int] = field(default_factory=dict)
    cached: dict[int, int] = field(default_factory=dict)
    completion: int = 0

    def take(self, line: Line, place: int = 0) -> None:
        """Count what the end of a choice says; ``place`` is its prompt's."""
        self.prompt[place] = max(self.prompt.get(place, 0), line.get("prompt_tokens", 0))
        self.cached[place] = max(self.cached.get(place, 0), line.get("cached_tokens", 0))
        self.completion += line["completion_tokens"]

    def document(self) -> Line:
        prompt = sum(self.prompt.values())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.completion,
            "total_tokens": prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": sum(self.cached.values())},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }


def failed(line: Line) -> None:
    """Say that an answer could not be finished, where a line says so.

    Raises:
        RefusedError: it says so.
    """
    if "error" in line:
        raise RefusedError(500, say("api-answer-failed", reason=line["error"]))


def whole(ends: Iterable[str | None]) -> None:
    """Say that an answer was cut off, where a choice has no end.

    Raises:
        RefusedError: one has none.
    """
    if not all(ends):
        raise _away()


def _away() -> RefusedError:
    return RefusedError(503, say("api-models-away"), headers={"retry-after-ms": "1000"})


class Models:
    """The process of the models, at its socket."""

    def __init__(self, socket: str) -> None:
        self._socket = socket
        self._client: Any = None

    async def lines(self, asked: Sequence[Line]) -> Lines:
        """Hand on what is asked; the lines, as they come, once it is sure that all will be answered.

        Raises:
            RefusedError: one is not; the others are not answered, then.
        """
        taken: list[Any] = []
        try:
            for one in asked:
                taken.append(await self._sent("/answer", one))
        except BaseException:
            await _leave(taken)
            raise
        return Lines(taken)

    async def say(self, path: str, asked: Line) -> Line:
        """What comes back at once.

        Raises:
            RefusedError: what is asked is refused.
        """
        import httpx2

        response = await self._sent(path, asked)
        try:
            await response.aread()
        except httpx2.TransportError:
            raise _away() from None
        found: Line = response.json()
        return found

    async def _sent(self, path: str, asked: Line) -> Any:
        import httpx2

        if self._client is None:  # here, in the loop that it belongs to
            # However many: who waits is decided there, in turn.
            every = httpx2.Limits(max_connections=None, max_keepalive_connections=20)
            transport = httpx2.AsyncHTTPTransport(uds=self._socket, retries=3, limits=every)
            self._client = httpx2.AsyncClient(transport=transport, timeout=None, base_url="http://models")
        try:
            request = self._client.build_request("POST", path, json=asked)
        except ValueError:  # half a letter, or a number that is none, somewhere in it
            raise RefusedError(400, say("api-not-text"), code="invalid_value") from None
        try:
            response = await self._client.send(request, stream=True)
        except httpx2.TransportError:
            raise _away() from None
        if response.status_code != 200:
            await response.aread()
            raise _refused(response)
        return response

    async def state(self) -> Line:
        """How the networks stand; nothing where the process is away."""
        import httpx2

        transport = httpx2.AsyncHTTPTransport(uds=self._socket)
        try:
            async with httpx2.AsyncClient(transport=transport, base_url="http://models", timeout=1.0) as client:
                found: Line = (await client.get("/state")).json()
                return found
        except httpx2.TransportError:
            return {}


@dataclass(frozen=True)
class Lines:
    """The answers to what was asked, behind each other: lines, each with the number of what it answers. None of them is
    given any further once nobody hears."""

    responses: Sequence[Any]

    async def __aiter__(self) -> AsyncIterator[tuple[int, Line]]:
        import httpx2

        try:
            for number, response in enumerate(self.responses):
                async for line in response.aiter_lines():
                    yield number, json.loads(line)
        except httpx2.TransportError:
            raise _away() from None
        finally:
            await _leave(self.responses)


async def _leave(responses: Sequence[Any]) -> None:
    for response in responses:
        await response.aclose()


def _refused(response: Any) -> RefusedError:
    said = response.json() if response.headers.get("content-type", "").startswith("application/json") else {}
    if response.status_code == 429:
        wait_ms = round(1000 * said["retry_after_s"])
        headers = {"retry-after-ms": str(wait_ms), "retry-after": str(-(-wait_ms // 1000))}
        return RefusedError(429, say("api-busy"), code="rate_limit_exceeded", headers=headers)
    if response.status_code in (400, 503) and said:
        return RefusedError(response.status_code, said["message"], said["param"], said["code"])
    return RefusedError(500, say("api-broken"))


class Target:
    """The model that a request means, and what of it the answer says."""

    def __init__(self, name: str, served: Served | None) -> None:
        self.name = name
        self.handed: Line = {"name": name}
        if served is not None:
            self.handed |= {"run": served.run, "folder": served.folder}
        digest = hashlib.sha256(json.dumps(self.handed, sort_keys=True).encode())
        self.fingerprint = f"fp_{digest.hexdigest()[:10]}"

    @property
    def headers(self) -> dict[str, str]:
        return {"x-onsa-model": self.name}


async def meant(service: Service, key: Key, name: str, user: str | None = None) -> Target:
    """The model of a name, or of an alias, that a key's project may ask.

    Args:
        user: who asks, of those behind the key: an alias leads the same user to the same model.

    Raises:
        RefusedError: there is none.
    """
    return await run_in_threadpool(_meant, service, key, name, user or key.id)


def _meant(service: Service, key: Key, name: str, user: str) -> Target:
    alias = service.aliases.find(key.project, name)
    leads = name if alias is None else alias.target(user)
    if leads in catalog():
        return Target(leads, None)
    served = service.models.find(key.project, leads)
    if served is None:
        raise RefusedError(404, say("api-no-model", model=leads), "model", "model_not_found")
    return Target(leads, served)


async def while_there(request: Request, work: Awaitable[Result]) -> Result:
    """What some work comes to; it is given up where the client goes away meanwhile."""
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait([task], timeout=POLL_S))[0]:
            if await request.is_disconnected():
                raise RefusedError(499, say("api-gone"))
        return task.result()
    finally:
        if not task.done():
            task.cancel()


def streamed(target: Target, parts: AsyncIterator[bytes]) -> StreamingResponse:
    """Server-sent events; what fails on the way is told as the last of them."""

    async def told() -> AsyncIterator[bytes]:
        try:
            async for part in parts:
                yield part
        except RefusedError as error:
            yield event({"error": {"message": error.message, "type": BROKEN, "param": None, "code": None}})

    headers = {**target.headers, "cache-control": "no-cache"}
    return StreamingResponse(told(), media_type="text/event-stream", headers=headers)


def event(data: Line | str) -> bytes:
    """One server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return f"data: {text}\n\n".encode()
