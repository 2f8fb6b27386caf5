"""The process of the models: it answers what the HTTP API hands on, over a socket of this machine that has no name
outside it, and imports what is slow only when it is first asked.

An answer comes as JSON lines: ``text`` of a choice ``i`` with its ``tokens`` where they are wanted; the end of each
choice, ``done``; and, where something fails on the way, ``error``.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from onsa.app.trying import BusyError, Trying
from onsa.spec.errors import MachineError, OnsaError
from onsa.spec.serving import Answering, Engine
from onsa.store.process import orphaned

if TYPE_CHECKING:
    from onsa.programs.answering import Begun
    from onsa.serve.asks import Event, Read, Ticket
    from onsa.serve.speaking import Piece, Spoken, Voice

Line = dict[str, Any]
READING = 8  # requests that are read or graded at once
CODES = {"prompt-too-long": "context_length_exceeded"}  # as OpenAI's clients know them


@dataclass
class Choice:
    """One of the answers to a request, while it is being given.

    echo: the prompt's text, where it is to be told.
    stops: tokens that end it.
    """

    voice: Voice
    prompt: tuple[int, ...] = ()
    echo: str | None = None
    stops: tuple[int, ...] = ()
    ticket: Ticket | None = None
    tokens: int = 0
    over: bool = False


@dataclass
class Answer:
    """The answers to one request. news: what their batcher told, by the choice's number."""

    choices: list[Choice]
    news: asyncio.Queue[tuple[int, Event]] = field(default_factory=asyncio.Queue)

    def cancel(self) -> None:
        """Let the batcher give up what nobody waits for."""
        for choice in self.choices:
            if choice.ticket is not None and not choice.over:
                choice.ticket.cancel()

    async def lines(self) -> AsyncIterator[bytes]:
        """What is told, line by line, until all choices are over."""
        try:
            for number, choice in enumerate(self.choices):
                if choice.echo is not None and choice.voice.bytes_of is None:  # no log-probabilities will tell it
                    yield json.dumps({"i": number, "text": choice.echo}, ensure_ascii=False).encode() + b"\n"
            while not all(choice.over for choice in self.choices):
                number, event = await self.news.get()
                for line in self._told(number, event):
                    yield json.dumps(line, ensure_ascii=False).encode() + b"\n"
        finally:
            self.cancel()

    def _told(self, number: int, event: Event) -> list[Line]:
        from onsa.serve.asks import Done, Read, Said

        choice = self.choices[number]
        if choice.over:
            return []
        if isinstance(event, Read):
            return [self._read(number, event)] if choice.echo else []
        if isinstance(event, Said):
            choice.tokens += 1
            piece = choice.voice.heard(event)
            if event.token in choice.stops:  # it says nothing
                piece = replace(piece, tokens=())
            found = [_line(number, piece)] if piece.text or piece.tokens else []
            return [*found, *self._over(number, "stop", 0)] if piece.ended else found
        assert isinstance(event, Done), "there is nothing else"
        rest = choice.voice.rest()
        if event.reason == "failed":
            return [{"i": number, "error": event.message}, *self._over(number, "failed", 0)]
        return [*([_line(number, rest)] if rest.text else []), *self._over(number, event.reason, event.cached_tokens)]

    def _read(self, number: int, event: Read) -> Line:
        """The prompt, told as the beginning of the answer."""
        choice = self.choices[number]
        letters = choice.voice.letters
        tokens = [
            {"bytes": list(letters(token)), "logprob": logprob, "top": [[list(letters(one)), at] for one, at in top]}
            for token, logprob, top in zip(choice.prompt, event.logprobs, event.tops, strict=True)
        ]
        return {"i": number, "text": choice.echo, "tokens": tokens}

    def _over(self, number: int, reason: str, cached: int) -> list[Line]:
        choice = self.choices[number]
        choice.over = True
        if choice.ticket is not None:
            choice.ticket.cancel()
        tokens = {"prompt_tokens": len(choice.prompt), "cached_tokens": cached, "completion_tokens": choice.tokens}
        return [{"i": number, "done": reason, **tokens}]


def _line(number: int, piece: Piece) -> Line:
    line: Line = {"i": number, "text": piece.text}
    if piece.tokens:
        line["tokens"] = [_token(token) for token in piece.tokens]
    return line


def _token(token: Spoken) -> Line:
    top = [[list(said), logprob] for said, logprob in token.top]
    return {"bytes": list(token.letters), "logprob": token.logprob, "top": top}


class Host:
    """The models of this process."""

    def __init__(self, answering: Answering) -> None:
        self._answering = answering
        self._residents: Any = None
        self._opening = Lock()
        self._trying = Trying()
        self._few = anyio.CapacityLimiter(READING)  # of the threads, most are for answers
        self._readers: Any = None

    async def answer(self, request: Request) -> Response:
        """``POST /answer``: see :mod:`onsa.app.api.asking` for what is asked."""
        asked = await request.json()
        try:
            answer = await run_in_threadpool(self._begun, asked, asyncio.get_running_loop())
        except OnsaError as error:
            return _refused(error)
        except BusyError as error:
            return _busy(error)
        return StreamingResponse(answer.lines(), media_type="application/x-ndjson")

    async def embed(self, request: Request) -> Response:
        """``POST /embed``: where texts stand."""
        return await self._read_rows(request, "embed")

    async def classify(self, request: Request) -> Response:
        """``POST /classify``: labels of texts."""
        return await self._read_rows(request, "classify")

    async def _read_rows(self, request: Request, what: str) -> Response:
        def work(asked: Line) -> Line:
            from onsa.programs import answering
            from onsa.serve.readers import Readers

            if self._readers is None:
                self._readers = Readers()
            done: Line = (answering.embed if what == "embed" else answering.classify)(self._readers, asked)
            return done

        return await _worked(request, work, self._few)

    async def grade(self, request: Request) -> Response:
        """``POST /grade``: what a grader gives an answer; without one, whether it is a grader."""
        return await _worked(request, self._trying.ask, self._few)

    async def state(self, _: Request) -> Response:
        """``GET /state``: how each network's batcher stands."""
        from dataclasses import asdict

        states = {} if self._residents is None else self._residents.states()
        return JSONResponse({name: asdict(state) for name, state in states.items()})

    def close(self) -> None:
        """End what answers."""
        self._trying.close()
        if self._residents is not None:
            self._residents.close()

    def _begun(self, asked: Line, loop: asyncio.AbstractEventLoop) -> Answer:
        """The answers to a request, which a batcher has taken.

        Raises:
            OnsaError: it cannot be answered.
            BusyError: too many wait.
        """
        from onsa.programs.answering import begin
        from onsa.serve.asks import Busy

        most = self._answering.answer_tokens or None
        try:
            return _taken(begin(self._opened(), {"most": most, **_said(asked)}), loop)
        except Busy as busy:
            raise BusyError(busy.retry_after_s) from None

    def _opened(self) -> Any:
        from onsa.serve.residents import InProcess, Residents

        with self._opening:
            if self._residents is None:
                networks = self._answering.networks
                if self._answering.engine is Engine.VLLM:
                    from onsa.serve.vllm import Vllm

                    self._residents = Residents(Vllm(networks), networks)
                else:
                    self._residents = Residents(InProcess(), networks)
        return self._residents


def _taken(begun: Begun, loop: asyncio.AbstractEventLoop) -> Answer:
    """The answers to a request, which a network has taken; either all of them or none."""
    pairs = zip(begun.voices, begun.asks, strict=True)
    answer = Answer([Choice(voice, ask.prompt, begun.echo, ask.stops) for voice, ask in pairs])
    try:
        for number, (choice, ask) in enumerate(zip(answer.choices, begun.asks, strict=True)):
            choice.ticket = begun.submit(ask, _teller(loop, answer.news, number))
    except BaseException:
        answer.cancel()
        raise
    return answer


def _teller(
    loop: asyncio.AbstractEventLoop, news: asyncio.Queue[tuple[int, Event]], number: int
) -> Callable[[Event], None]:
    """Puts what a batcher's thread tells into a queue of the loop."""
    return lambda event: _put(loop, news, (number, event))


def _put(loop: asyncio.AbstractEventLoop, news: asyncio.Queue[Any], told: tuple[int, Event]) -> None:
    loop.call_soon_threadsafe(news.put_nowait, told)


async def _worked(request: Request, work: Callable[[Line], Line], threads: anyio.CapacityLimiter) -> Response:
    try:
        done = await anyio.to_thread.run_sync(work, await request.json(), limiter=threads)
    except OnsaError as error:
        return _refused(error)
    except BusyError as error:
        return _busy(error)
    return JSONResponse(done["refused"], 400) if "refused" in done else JSONResponse(done)


def _busy(error: BusyError) -> Response:
    return JSONResponse({"retry_after_s": error.args[0]}, 429)


def _refused(error: OnsaError) -> Response:
    problem = error.problems[0]
    code = CODES.get(problem.code, problem.code)
    said = {"message": f"{problem.what} {problem.fix}", "param": problem.key, "code": code}
    return JSONResponse(said, 503 if isinstance(error, MachineError) else 400)


def _said(asked: Line) -> Line:
    return {name: value for name, value in asked.items() if value is not None}


def main(arguments: list[str]) -> int:
    """Answer at a socket, given by its path, as the JSON behind it says; then the pid of who starts this."""
    socket = Path(arguments[0])
    host = Host(Answering(**json.loads(arguments[1])))
    asked = {"/answer": host.answer, "/embed": host.embed, "/classify": host.classify, "/grade": host.grade}
    routes = [*(Route(path, call, methods=["POST"]) for path, call in asked.items()), Route("/state", host.state)]
    with suppress(FileNotFoundError):
        socket.unlink()
    app = Starlette(routes=routes)
    server = uvicorn.Server(uvicorn.Config(app, uds=str(socket), access_log=False, log_level="warning", lifespan="off"))

    def end() -> None:
        server.should_exit = True

    orphaned(end, int(arguments[2]))
    server.run()
    host.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
