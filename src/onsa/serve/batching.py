"""Batching: one network that answers many requests at once, each token by token, as they come and go.

One thread does all that the network does. In every tick it lets waiting requests join, reads a chunk of their prompts,
and finds the next token of everyone who is being answered (Yu et al. 2022, Orca).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

import torch

from onsa.models.load import first_line
from onsa.models.policy import Policy
from onsa.models.products import resting
from onsa.serve.adapters import Adapter
from onsa.serve.asks import Ask, Busy, State, Tell, check
from onsa.serve.running import Limits, Row, Running
from onsa.serve.scheduling import FairQueue

SMOOTHING = 0.2  # the share of the last answer in the mean time of an answer
RETRY_S = (1.0, 60.0)  # the soonest and the latest that is advised


class Ticket:
    """A request that was taken."""

    def __init__(self, row: Row, news: threading.Condition) -> None:
        self._row, self._news = row, news

    def cancel(self) -> None:
        """Let the answer end before its next token; from any thread, at any time. What is over stays as it was."""
        with self._news:
            self._row.cancelled = True
            self._news.notify()


class Batcher:
    """Answers requests over one network, which is its own from now on, until it is closed.

    Args:
        policy: a causal language model. Adapters that are stacked need one without a wrapper.
        find: gives adapters by their names; without it there are none.

    Raises:
        ValueError: the network cannot be asked row by row (:class:`Running`).
    """

    def __init__(
        self, policy: Policy, limits: Limits | None = None, find: Callable[[str], Adapter] | None = None
    ) -> None:
        self.limits = limits or Limits()
        self._policy = policy
        self._running = Running(policy, self.limits, find)
        self._adapters = find is not None
        self._waiting: FairQueue[Row] = FairQueue()
        self._given_up: deque[Row] = deque()
        self._answer_s = 1.0
        self._began: dict[Row, float] = {}
        self._news = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="onsa-batcher", daemon=True)
        self._thread.start()

    @property
    def context(self) -> int:
        """The most tokens of a prompt and its answer together."""
        return self._running.context

    @property
    def alive(self) -> bool:
        """Whether it answers."""
        return not self._closed and self._thread.is_alive()

    def submit(self, ask: Ask, tell: Tell) -> Ticket:
        """Let a request wait for its answer.

        Args:
            tell: called for each event, the last of which is :class:`Done`, from the batcher's thread, so it has to be
                brief. Where it raises, the request is cancelled.

        Raises:
            Busy: too many wait.
            ValueError: this network cannot be asked so.
            RuntimeError: the batcher is closed.
        """
        check(ask, self.context, self._running.vocabulary)
        if ask.adapter is not None and not self._adapters:
            raise ValueError(f"adapter {ask.adapter}: this network has none.")
        row = Row(ask, tell, min(ask.most, self.context - len(ask.prompt)))
        with self._news:
            if self._closed:
                raise RuntimeError("The batcher is closed.")
            if self._waiting.full(ask.sender, self.limits.waiting):
                raise Busy(self._retry_after_s())
            self._waiting.put(ask.sender, row)
            self._news.notify()
        return Ticket(row, self._news)

    def _retry_after_s(self) -> float:
        """When as many will have been answered as rows are answered at once."""
        soonest, latest = RETRY_S
        return min(max(self._answer_s * len(self._waiting) / self.limits.rows, soonest), latest)

    def state(self) -> State:
        """How it stands; from any thread."""
        running = self._running
        with self._news:
            waiting = len(self._waiting) + len(self._given_up)
        return State(
            running=len(running.rows),
            waiting=waiting,
            tokens=running.tokens,
            prefix_hits=running.prefix_hits,
            prefix_tokens=running.prefix_tokens,
            prefix_bytes=running.prefixes.bytes,
            slots_tokens=running.slots.ready.capacity,
            given_up=running.given_up,
            adapters=() if running.stacks is None else running.stacks.names,
        )

    def close(self) -> None:
        """Cancel what runs and waits, and end the thread."""
        with self._news:
            self._closed = True
            self._news.notify()
        self._thread.join()

    # The thread

    def _work(self) -> None:
        try:
            self._answer_all()
        finally:  # also where the device is lost: who waits is told
            with self._news:
                self._closed = True
                left = [*self._running.rows, *self._given_up, *self._waiting]
            for row in left:
                if not row.over:
                    row.end("cancelled")

    def _answer_all(self) -> None:
        with torch.inference_mode(), resting(self._policy.network):
            while self._wait():
                try:
                    with self._policy.autocast():
                        self._tick()
                except Exception as error:  # whatever it is, others are to be answered
                    for row in self._running.rows:
                        self._running.end(row, "failed", first_line(error))
            for row in self._running.rows:
                self._running.end(row, "cancelled")

    def _wait(self) -> bool:
        """Wait for work; whether there is to be more."""
        with self._news:
            while not (self._closed or self._running.rows or self._given_up or len(self._waiting)):
                self._news.wait()
            return not self._closed and self._thread.is_alive()

    def _tick(self) -> None:
        self._drop()
        self._admit()
        self._running.read()
        self._given_up.extendleft(reversed(self._running.give_up()))
        self._running.decode()
        self._note_ended()

    def _drop(self) -> None:
        """End who was cancelled."""
        with self._news:
            gone = self._waiting.remove(lambda row: row.cancelled)
        gone += [row for row in self._given_up if row.cancelled]
        self._given_up = deque(row for row in self._given_up if not row.cancelled)
        for row in gone:
            row.end("cancelled")
        for row in [row for row in self._running.rows if row.cancelled]:
            self._running.end(row, "cancelled")

    def _admit(self) -> None:
        """Let join who can, in order; first who has made room for others."""
        while True:
            with self._news:
                row = self._given_up[0] if self._given_up else self._waiting.first()
                if row is None or not self._running.takes(row):
                    return
                if self._given_up:
                    self._given_up.popleft()
                else:
                    self._waiting.take()
            self._began.setdefault(row, time.monotonic())
            self._running.add(row)

    def _note_ended(self) -> None:
        """Take note of how long answers take."""
        for row in [row for row in self._began if row.over]:
            spent = time.monotonic() - self._began.pop(row)
            self._answer_s += SMOOTHING * (spent - self._answer_s)
