"""Crew: the processes beside the one that trains. Each holds a session of its own, and does what it is asked for over a
pipe until that pipe ends.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import pickle
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar

import torch
from torch import distributed

from onsa.engine.ranks import ElsewhereError, Place, Ranks, sendable
from onsa.engine.sessions.base import Work
from onsa.engine.sessions.local import LocalSession
from onsa.engine.shards import Shards
from onsa.models.quantize import is_quantised
from onsa.spec.errors import MachineError, OnsaError
from onsa.store.atomic import ensure_space

PATIENCE_S = 20  # until a process that was told to stop is made to
SOON_S = 2  # within which a process that failed has said why, and ended
ANSWERED = "outcomes"  # the one thing that is asked for its answer; of all else it is enough that it is done
WORK = "work"
Result = TypeVar("Result")


@dataclass(frozen=True)
class Worker:
    """A process beside this one, and the pipe to it."""

    process: SpawnProcess
    pipe: Connection


@dataclass(frozen=True)
class Failure:
    """What a worker failed with, and when, on this machine's clock; it answers with that in place of a result."""

    error: Exception
    at: float

    def told(self, rank: int) -> Exception:
        """The error as it is told to a user, or to whoever knows of it already."""
        if isinstance(self.error, OnsaError | ElsewhereError):
            return self.error
        reason = f"{type(self.error).__name__}: {self.error}"
        return MachineError.of("process-failed", key="engine", rank=rank, reason=reason)


class Crew:
    """The workers of a session, ranks 1 on; this process is rank 0, and ``work`` is its own part."""

    def __init__(self, work: Work, place: Place) -> None:
        """Start them, and wait until they are there.

        Raises:
            MachineError: there is no room to hand over the work, or one of them did not come up.
        """
        self.place, self.threads = place, torch.get_num_threads()
        self.workers: list[Worker] = []
        self.ended = False
        context = multiprocessing.get_context("spawn")
        try:
            self.work = _handed_over(work, place)
            with _uninterrupted():
                for rank in range(1, place.count):
                    near, far = context.Pipe()
                    given = (replace(place, rank=rank), far)
                    process = context.Process(target=_serve, args=given, daemon=True, name=f"onsa-rank-{rank}")
                    process.start()
                    far.close()
                    self.workers.append(Worker(process, near))
            torch.set_num_threads(place.threads)
            self.answers()
            with suppress(OSError):  # what is mapped stays; only Windows keeps its name until the end
                (place.folder / WORK).unlink()
        except BaseException:
            self.end()
            raise

    def ask(self, verb: str, *given: Any) -> None:
        """Ask every worker for the same."""
        self.deal(verb, [given] * len(self.workers))

    def deal(self, verb: str, given: Sequence[tuple[Any, ...]]) -> None:
        """Ask each worker for its part of something."""
        for worker, part in zip(self.workers, given, strict=True):
            with suppress(OSError):  # that one has ended is noticed when it does not answer
                worker.pipe.send_bytes(pickle.dumps((verb, part)))

    def answers(self) -> list[Any]:
        """What the workers answer to the last thing that they were asked.

        Raises:
            OnsaError: one of them has failed, or has ended.
        """
        return [self._heard(rank) for rank in range(1, len(self.workers) + 1)]

    def beside(self, mine: Callable[[], Result]) -> tuple[Result, list[Any]]:
        """What this process does while the workers do what they were asked for, and what they answer.

        Raises:
            OnsaError: it failed here, or in one of them; all of them are then ended.
        """
        try:
            return mine(), self.answers()
        except Exception as error:
            # Where a worker fails, this process fails with it in an exchange: the cause is told, not what came of it.
            told = [] if isinstance(error, OnsaError) else self._failures()
            self.end()
            if told:
                raise told[0] from error
            raise

    def end(self) -> None:
        """Stop the workers and leave the group."""
        if self.ended:
            return
        self.ended = True
        for worker in self.workers:
            worker.pipe.close()
        if distributed.is_initialized():
            distributed.destroy_process_group()  # which also frees one that waits for this process in an exchange
        for worker in self.workers:
            worker.process.join(timeout=PATIENCE_S)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self.workers.clear()
        shutil.rmtree(self.place.folder, ignore_errors=True)
        torch.set_num_threads(self.threads)

    def _heard(self, rank: int) -> Any:
        """What a worker answers.

        Raises:
            OnsaError, ElsewhereError: it has failed, or has ended.
        """
        answer = self._answer(rank)
        if isinstance(answer, Failure):
            raise answer.told(rank)
        return answer

    def _answer(self, rank: int) -> Any:
        worker = self.workers[rank - 1]
        try:
            return pickle.loads(worker.pipe.recv_bytes())
        except (EOFError, OSError):
            worker.process.join(timeout=PATIENCE_S)
            code = worker.process.exitcode
            status = signal.Signals(-code).name if code is not None and code < 0 else code
            return Failure(MachineError.of("process-lost", key="engine", rank=rank, status=status), -math.inf)

    def _failures(self) -> list[Exception]:
        """Why workers have failed, the earliest first: what others say may have come of it."""
        given: list[tuple[int, Any]] = []
        for rank, worker in enumerate(self.workers, 1):
            if wait([worker.process.sentinel, worker.pipe], timeout=SOON_S):
                given.append((rank, self._answer(rank)))
        failures = [(rank, answer) for rank, answer in given if isinstance(answer, Failure)]
        told = [failure.told(rank) for rank, failure in sorted(failures, key=lambda found: found[1].at)]
        return [error for error in told if not isinstance(error, ElsewhereError)]


def among(place: Place) -> Ranks:
    """A process' part in the group that it has joined."""
    return Shards(place) if place.sharded else Ranks(place)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Processes that are started within never hear of Ctrl-C: the one that trains does, and tells them when to stop."""
    if not hasattr(signal, "pthread_sigmask"):  # not on Windows, where they ignore it once they are up
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _handed_over(work: Work, place: Place) -> Work:
    """Lay the work down for the workers; returns what is this process' part.

    Frozen values are then mapped from that file, here as there, so that they lie in memory once; shared memory would
    need a file handle for each, and is small in containers.
    """
    ensure_space(place.folder, sum(parameter.nbytes for parameter in work.network.parameters()))
    # Rows are of use to the others only where something of them is kept.
    sent = work if work.plan.cuts else replace(work, sides=())
    torch.save(sent, place.folder / WORK, pickle_protocol=pickle.HIGHEST_PROTOCOL)
    mapped = _taken_up(place)
    for mine, there in zip(work.network.parameters(), mapped.network.parameters(), strict=True):
        if not (mine.requires_grad or is_quantised(mine)):
            mine.data = there.data
    return mapped if place.sharded else work  # what is held in parts can be no network that is whole as well


def _taken_up(place: Place) -> Work:
    """The work that was laid down, with a network of its own."""
    found: Work = torch.load(place.folder / WORK, mmap=True, weights_only=False)
    return found


def _serve(place: Place, pipe: Connection) -> None:
    """A worker's life. A failure is its end: what the others then wait for, it cannot give."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_parent(place)
    torch.set_num_threads(place.threads)
    try:
        work = _taken_up(place)
        _say(pipe, None)  # it is there, and can be met
        place.join()
        session = LocalSession(work, place.where, among(place))
        _say(pipe, None)
        while True:
            verb, given = pickle.loads(pipe.recv_bytes())
            answer = getattr(session, verb)(*given)
            _say(pipe, answer if verb == ANSWERED else None)
    except (EOFError, ConnectionError):
        pass  # the first process is done
    except Exception as error:
        with suppress(OSError):
            _say(pipe, Failure(sendable(error), time.monotonic()))
        wait([pipe], timeout=SOON_S)  # until it has been heard; then, or where the first was killed, the pipe ends
    # An orderly end could be brought down by a group that something still holds.
    shutil.rmtree(place.folder, ignore_errors=True)
    os._exit(0)


def _say(pipe: Connection, answer: Any) -> None:
    pipe.send_bytes(pickle.dumps(answer))


def _end_with_parent(place: Place) -> None:
    """Let this process end when the one that trains does, whatever it is doing then."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has been started by another process"

    def watch() -> None:
        wait([parent.sentinel])
        shutil.rmtree(place.folder, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
