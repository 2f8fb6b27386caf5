"""``/completions``: texts gone on with, and, with ``echo`` and ``logprobs``, scored."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

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
from onsa.spec.messages import say

router = APIRouter()
DEFAULT_TOKENS = 16
MOST_PROMPTS = 256
Token = Annotated[int, Field(ge=0, lt=2**31)]
Prompts = Annotated[list[str] | list[list[Token]], Field(min_length=1)]
Prompt = str | Annotated[list[Token], Field(min_length=1)] | Prompts


class CompletionCreate(Sampled):
    """Texts, or tokens, to go on with. ``best_of`` draws more answers and gives the likeliest ones."""

    prompt: Prompt | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: Annotated[int, Field(ge=0, le=20)] | None = None
    stream_options: StreamOptions | None = None

    def prompts(self) -> list[str | list[int]]:
        """Each of the prompts."""
        given = self.prompt or ""
        if isinstance(given, str) or isinstance(given[0], int):
            return [given]
        return list(given)

    def asked(self, target: Target, sender: str, prompt: str | list[int]) -> Line:
        """What is handed on to the models for one prompt."""
        drawn = max(self.n or 1, self.best_of or 0)
        most = DEFAULT_TOKENS if self.max_tokens is None else self.max_tokens
        # To find the likeliest of several, their log-probabilities are needed.
        logprobs = 0 if self.logprobs is None and drawn > (self.n or 1) else self.logprobs
        told = {"logprobs": logprobs, "echo": bool(self.echo), "suffix": self.suffix}
        meant = {"target": target.handed, "sender": sender, "prompt": prompt}
        return {**self.drawn(), **told, **meant, "n": drawn, "most": most}


@dataclass
class Text:
    """One choice, as it grows: the text, its tokens, and why it ended."""

    text: str = ""
    tokens: list[Line] = field(default_factory=list)
    finish: str | None = None

    def likelihood(self) -> float:
        """The mean log-probability of its tokens."""
        known = [token["logprob"] for token in self.tokens if token["logprob"] is not None]
        return sum(known) / len(known) if known else 0.0


@dataclass
class Completion:
    """The choices of one request; those of one prompt stand together."""

    target: Target
    body: CompletionCreate
    usage: Usage = field(default_factory=Usage)
    id: str = field(default_factory=lambda: f"cmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))
    texts: dict[int, Text] = field(default_factory=dict)

    def take(self, number: int, line: Line) -> Line | None:
        """Take up a line of the choice of this number; returns it as the choice of a chunk."""
        failed(line)
        text = self.texts.setdefault(number, Text())
        if "done" in line:
            self.usage.take(line, number // self.drawn)
            text.finish = "length" if line["done"] == "length" else "stop"
            return _choice(number, "", None, text.finish)
        tokens, start = line.get("tokens", []), len(text.text)
        text.tokens += tokens
        text.text += line["text"]
        return _choice(number, line["text"], self._logprobs(tokens, start), None)

    @property
    def drawn(self) -> int:
        """Answers to each prompt."""
        return max(self.body.n or 1, self.body.best_of or 0)

    def document(self, chosen: Sequence[Text]) -> Line:
        """The whole of it."""
        choices = [
            _choice(number, text.text, self._logprobs(text.tokens, 0), text.finish)
            for number, text in enumerate(chosen)
        ]
        return {**self.head(), "choices": choices, "usage": self.usage.document()}

    def head(self) -> Line:
        head = {"id": self.id, "object": "text_completion", "created": self.created, "model": self.target.name}
        return {**head, "system_fingerprint": self.target.fingerprint}

    def _logprobs(self, tokens: Sequence[Line], start: int) -> Line | None:
        if self.body.logprobs is None:
            return None
        texts = [bytes(token["bytes"]).decode(errors="replace") for token in tokens]
        offsets = [start + sum(map(len, texts[:place])) for place in range(len(texts))]
        tops = [_tops(token) for token in tokens]
        return {
            "tokens": texts,
            "token_logprobs": [token["logprob"] for token in tokens],
            "top_logprobs": tops if self.body.logprobs else None,
            "text_offset": offsets,
        }


def _tops(token: Line) -> Line | None:
    if token["logprob"] is None:
        return None
    found: Line = {}
    for said, logprob in [(token["bytes"], token["logprob"]), *token["top"]]:  # what was said is always among them
        found.setdefault(bytes(said).decode(errors="replace"), logprob)
    return found


def _choice(number: int, text: str, logprobs: Line | None, finish: str | None) -> Line:
    return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": finish}


@router.post("/completions")
async def create_completion(request: Request, key: Asker, service: Serving, body: CompletionCreate) -> Response:
    models: Models = request.app.state.models
    target = await meant(service, key, body.model, body.user)
    prompts = body.prompts()
    if len(prompts) > MOST_PROMPTS:
        raise RefusedError(400, say("api-many-prompts", most=MOST_PROMPTS), "prompt", "invalid_value")
    if body.best_of and body.best_of < (body.n or 1):
        raise RefusedError(400, say("api-best-of-less"), "best_of", "invalid_value")
    if body.stream and (body.best_of or 0) > (body.n or 1):
        raise RefusedError(400, say("api-best-of-stream"), "best_of", "invalid_value")
    lines = await while_there(request, models.lines([body.asked(target, key.project, prompt) for prompt in prompts]))
    completion = Completion(target, body)
    if body.stream:
        return streamed(target, _parts(completion, lines))

    async def taken() -> Line:
        chosen: list[Text] = []
        drawn = completion.drawn
        async for place, line in lines:
            completion.take(place * drawn + line["i"], line)
        whole(text.finish for text in completion.texts.values())
        for place in range(len(prompts)):
            found = [completion.texts[place * drawn + number] for number in range(drawn)]
            if drawn > (body.n or 1):
                found = sorted(found, key=Text.likelihood, reverse=True)[: body.n or 1]
            chosen += found
        return completion.document(chosen)

    return JSONResponse(await while_there(request, taken()), headers=target.headers)


async def _parts(completion: Completion, lines: Lines) -> AsyncIterator[bytes]:
    n, options = completion.body.n or 1, completion.body.stream_options
    counts = bool(options and options.include_usage)
    usage = {"usage": None} if counts else {}
    async for place, line in lines:
        yield event({**completion.head(), "choices": [completion.take(place * n + line["i"], line)], **usage})
    whole(text.finish for text in completion.texts.values())
    if counts:
        yield event({**completion.head(), "choices": [], "usage": completion.usage.document()})
    yield event("[DONE]")
