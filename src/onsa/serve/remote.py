"""Remote: a network in a process of vLLM's that answers many requests at once.

Prompts go there, and answers come back, as token numbers with their log-probabilities, so that templates, texts that
end an answer, tools and log-probabilities are those of :mod:`onsa.serve.batching`.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

from onsa.models.load import first_line
from onsa.serve.asks import Ask, Busy, Done, Read, Reason, Said, State, Tell, Top, check
from onsa.serve.scheduling import FairQueue

BASE = "base"  # the name of the network without an adapter
ROWS = 64  # answered at once
WAITING = 256
TOKEN = "token_id:"  # what a token's number is told behind
Json = dict[str, Any]


class Process(Protocol):
    """A process that answers at a socket."""

    socket: str

    @property
    def alive(self) -> bool: ...

    def end(self) -> None: ...


@dataclass(eq=False)
class Row:
    """A request on its way."""

    ask: Ask
    tell: Tell
    most: int

    def over(self, reason: Reason, cached: int = 0, message: str = "") -> None:
        """Tell the end."""
        with suppress(RuntimeError):  # nobody listens any more
            self.tell(Done(reason, len(self.ask.prompt), cached, message))


@dataclass(frozen=True)
class Ticket:
    """A request that was taken."""

    remote: Remote
    row: Row

    def cancel(self) -> None:
        self.remote.give_up(self.row)


class Remote:
    """Answers requests by a process, which is its own from now on.

    Args:
        context: the most tokens of a prompt and its answer together.
        vocabulary: how many tokens there are.
        find: the folder of an adapter, by its name.
    """

    def __init__(self, process: Process, context: int, vocabulary: int, find: Callable[[str], Path]) -> None:
        self._process, self._context, self._vocabulary, self._find = process, context, vocabulary, find
        self._waiting: FairQueue[Row] = FairQueue()
        self._running: dict[Row, asyncio.Task[tuple[Reason, int]]] = {}
        self._adapters: OrderedDict[str, asyncio.Task[None]] = OrderedDict()
        self._tokens = self._prefix_hits = self._prefix_tokens = 0
        self._lock = threading.Lock()
        self._closed = False
        self._client: Any = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="onsa-remote", daemon=True)
        self._thread.start()

    @property
    def context(self) -> int:
        return self._context

    @property
    def alive(self) -> bool:
        return not self._closed and self._process.alive

    def submit(self, ask: Ask, tell: Tell) -> Ticket:
        check(ask, self.context, self._vocabulary)
        row = Row(ask, tell, min(ask.most, self.context - len(ask.prompt)))
        with self._lock:
            if self._closed:
                raise RuntimeError("The network is closed.")
            if self._waiting.full(ask.sender, WAITING):
                raise Busy(WAITING / ROWS)
            self._waiting.put(ask.sender, row)
        self._loop.call_soon_threadsafe(self._begin)
        return Ticket(self, row)

    def give_up(self, row: Row) -> None:
        """Answer a request no further; from any thread, at any time."""
        with suppress(RuntimeError):  # the loop has ended, and all requests with it
            self._loop.call_soon_threadsafe(self._give_up, row)

    def state(self) -> State:
        with self._lock:
            waiting = len(self._waiting)
        return State(
            running=len(self._running),
            waiting=waiting,
            tokens=self._tokens,
            prefix_hits=self._prefix_hits,
            prefix_tokens=self._prefix_tokens,
            adapters=tuple(self._adapters),
        )

    def close(self) -> None:
        with self._lock:
            closed, self._closed = self._closed, True
        if not closed:
            asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._process.end()

    # In the loop

    async def _close(self) -> None:
        with self._lock:
            waiting = self._waiting.remove(lambda _: True)
        for row in waiting:
            row.over("cancelled")
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._client is not None:
            await self._client.aclose()

    def _begin(self) -> None:
        """Let those who wait be answered, in turn, as long as there is room."""
        with self._lock:
            while len(self._waiting) and len(self._running) < ROWS and not self._closed:
                row = self._waiting.take()
                self._running[row] = task = self._loop.create_task(self._answer(row))
                task.add_done_callback(partial(self._ended, row))

    def _give_up(self, row: Row) -> None:
        if row in self._running:
            self._running[row].cancel()
            return
        with self._lock:
            gone = self._waiting.remove(lambda one: one is row)
        for one in gone:
            one.over("cancelled")

    def _ended(self, row: Row, task: asyncio.Task[tuple[Reason, int]]) -> None:
        del self._running[row]
        if task.cancelled():
            row.over("cancelled")
        elif (error := task.exception()) is not None:
            row.over("failed", message=first_line(cast(Exception, error)))
        else:
            row.over(*task.result())
        self._begin()

    async def _answer(self, row: Row) -> tuple[Reason, int]:
        """Answer one request; how it ended, and the tokens of its prompt that were still there."""
        ask = row.ask
        if ask.adapter is not None:
            await asyncio.shield(self._adapter(ask.adapter))
        body = asked(ask, row.most)
        reason, cached = "length", 0
        async for answer in self._whole(body) if ask.prompt_logprobs else self._streamed(body):
            if answer.get("error"):
                raise RuntimeError(answer["error"].get("message", answer["error"]))
            usage = (answer.get("usage") or {}).get("prompt_tokens_details") or {}
            cached = usage.get("cached_tokens") or cached
            for choice in answer["choices"]:
                self._tell(row, choice["logprobs"])
                reason = choice.get("finish_reason") or reason
        self._prefix_hits += cached > 0
        self._prefix_tokens += cached
        return cast(Reason, reason if reason in ("stop", "length") else "failed"), cached

    def _tell(self, row: Row, logprobs: Mapping[str, Any] | None) -> None:
        if not logprobs:
            return
        tokens = [int(token.removeprefix(TOKEN)) for token in logprobs["tokens"]]
        values, most = logprobs["token_logprobs"], row.ask.alternatives
        tops = [_top(said, most) for said in logprobs.get("top_logprobs") or [None] * len(tokens)]
        start = len(row.ask.prompt) if row.ask.prompt_logprobs else 0
        if start:
            row.tell(Read((None, *values[1:start]), ((), *tops[1:start])))
        for place in range(start, len(tokens)):
            row.tell(Said(tokens[place], values[place], tops[place]))
        self._tokens += len(tokens) - start

    def _adapter(self, name: str) -> asyncio.Task[None]:
        """Hand an adapter over, once; the process itself keeps in memory those that are asked most recently."""
        found = self._adapters.get(name)
        if found is None or (found.done() and found.exception() is not None):
            body = {"lora_name": name, "lora_path": str(self._find(name))}
            self._adapters[name] = found = self._loop.create_task(self._handed(body))
        self._adapters.move_to_end(name)
        return found

    async def _handed(self, body: Json) -> None:
        response = await self._http().post("/v1/load_lora_adapter", json=body)
        if response.status_code != 200:
            raise RuntimeError(_reason(response))

    async def _whole(self, body: Json) -> AsyncIterator[Json]:
        """An answer that comes at once, with its prompt's log-probabilities."""
        response = await self._http().post("/v1/completions", json={**body, "echo": True})
        if response.status_code != 200:
            raise RuntimeError(_reason(response))
        yield response.json()

    async def _streamed(self, body: Json) -> AsyncIterator[Json]:
        """An answer as it comes."""
        more = {"stream": True, "stream_options": {"include_usage": True}}
        async with self._http().stream("POST", "/v1/completions", json={**body, **more}) as response:
            if response.status_code != 200:
                await response.aread()
                raise RuntimeError(_reason(response))
            async for line in response.aiter_lines():
                said = line.removeprefix("data:").strip()
                if said and said != "[DONE]":
                    yield json.loads(said)

    def _http(self) -> Any:
        import httpx2

        if self._client is None:  # here, in the loop that it belongs to
            transport = httpx2.AsyncHTTPTransport(uds=self._process.socket)
            self._client = httpx2.AsyncClient(transport=transport, timeout=None, base_url="http://network")
        return self._client


def asked(ask: Ask, most: int) -> Json:
    """A request as vLLM's ``/v1/completions`` takes it; it ends at our tokens alone."""
    body: Json = {
        "model": ask.adapter or BASE,
        "prompt": list(ask.prompt),
        "max_tokens": most,
        "temperature": ask.temperature,
        "top_p": ask.top_p,
        "seed": ask.seed % (1 << 63),
        "stop_token_ids": list(ask.stops),
        "ignore_eos": True,
        "logprobs": ask.alternatives,
        "return_tokens_as_token_ids": True,
        "return_token_ids": True,
        "frequency_penalty": ask.frequency_penalty,
        "presence_penalty": ask.presence_penalty,
    }
    if ask.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in ask.logit_bias.items()}
    if ask.allowed is not None:
        body["structured_outputs"] = {"json": ask.allowed.schema}
    return body


def _top(said: Mapping[str, float] | None, most: int) -> Top:
    """The likeliest tokens; what was said is told beside them, and may be none of them."""
    found = [(int(token.removeprefix(TOKEN)), logprob) for token, logprob in (said or {}).items()]
    return tuple(sorted(found, key=lambda one: -one[1])[:most])


def _reason(response: Any) -> str:
    try:
        said = response.json()
        return str((said.get("error") or said)["message"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"HTTP {response.status_code}"
