"""Torchrun: steps in several processes of this machine, each with a share of every step's rows (data parallelism).

The process that trains is rank 0: it runs the loop and answers for the session. The others hold the same network, or
each a part of it, and do what they are told over pipes. A loss is a sum and its weight, so gradients, weights and
figures are added up over all ranks and divided once: the steps are those of one process, up to the order of
floating-point sums.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from weakref import WeakSet, finalize

import torch
from pydantic import Field
from torch import Tensor, distributed, nn

from onsa.adaptations.base import Adaptation
from onsa.engine import shards
from onsa.engine.batches import evaluation_batches
from onsa.engine.crew import ANSWERED, Crew, among
from onsa.engine.dealing import dealt, enough, filled
from onsa.engine.ranks import Place
from onsa.engine.sessions.base import Copies, Engine, Moved, Session, Work
from onsa.engine.sessions.local import LocalSession
from onsa.models.batch import Batch, Example
from onsa.models.load import hold_in
from onsa.objectives.base import Objective
from onsa.optim.optimizers.base import Optimizer
from onsa.spec.errors import MachineError, Problem
from onsa.tasks.base import Examiner, Outcome

USUAL = 2  # processes where there is no GPU


class Torchrun(Engine):
    """Several processes on this machine, over gloo on the CPU and NCCL on GPUs.

    processes: how many; one for each GPU where there are any, else 2.
    weights: ``replicated``, all of them in every process, or ``sharded``: of each block a part in every process, and of
        what the optimizer keeps for it (FSDP: Zhao et al. 2023).
    device: ``cpu`` or ``cuda``; GPUs where there are any, if not given.
    threads: CPU threads of each process; the cores shared out evenly, if not given.
    """

    kind: ClassVar[str] = "torchrun"
    processes: Annotated[int, Field(ge=1)] | None = None
    weights: Literal["replicated", "sharded"] = "replicated"
    device: Literal["cpu", "cuda"] | None = None
    threads: Annotated[int, Field(ge=1)] | None = None

    def place(self) -> str:
        if not distributed.is_available():
            raise MachineError.of("processes-unavailable", key="engine")
        there = _gpus()
        if self.device == "cuda" and not there:
            raise MachineError.of("no-gpu", key="engine.device")
        place = self.device or ("cuda" if there else "cpu")
        if place == "cuda" and (self.processes or 1) > there:
            raise MachineError.of("gpus-few", key="engine.processes", value=self.processes, there=there)
        return place

    @property
    def count(self) -> int:
        """The processes that there will be."""
        return self.processes or (_gpus() if self.place() == "cuda" else USUAL)

    @property
    def copies(self) -> Copies:
        here = 1 if self.place() == "cuda" else self.count  # that share one memory
        return Copies(here, here / self.count if self.weights == "sharded" else here, here)

    def refuse(self, adaptation: Adaptation, optimizer: Optimizer, quantize: str | None) -> Problem | None:
        if self.weights == "replicated":
            return None
        if adaptation.staged:
            return Problem("shards-adaptation", {"adaptation": adaptation.kind}, key="engine.weights")
        if not optimizer.valuewise:
            return Problem("shards-optimizer", {"optimizer": optimizer.kind}, key="engine.weights")
        if quantize is not None:
            return Problem("shards-quantised", {"value": quantize}, key="engine.weights")
        return None

    @property
    def alone(self) -> bool:
        return False

    def open(self, work: Work) -> Session:
        place = self.place()
        if self.weights == "sharded":
            shards.check(work)
        for other in list(_open):  # a process is in one group at most: a session that was left open ends here
            other.close()
        if distributed.is_initialized():
            raise MachineError.of("processes-taken", key="engine")
        count = self.count
        threads = self.threads or max(1, torch.get_num_threads() // count)
        folder = Path(tempfile.mkdtemp(prefix="onsa-"))
        return TorchrunSession(work, Place(place, 0, count, threads, folder, self.weights == "sharded"))


class TorchrunSession(Session):
    """Rank 0 with the workers beside it, which end when it is closed or let go of."""

    def __init__(self, work: Work, place: Place) -> None:
        hold_in(work.network, work.precision, torch.device("cpu"))  # from where the workers take it up
        self.place, self.given = place, work.network
        self.crew = Crew(work, place)
        self._end = finalize(self, self.crew.end)
        self.first, _ = self.crew.beside(self._joined)
        self.models = self.first.models
        _open.add(self)

    def _joined(self) -> LocalSession:
        self.place.join()
        return LocalSession(self.crew.work, self.place.where, among(self.place))

    def close(self) -> None:
        if not self._end.alive:
            return
        self._end()
        if self.place.sharded:  # its parts hold on to the group
            del self.first, self.models
            gc.collect()

    def network(self) -> nn.Module:
        if not self.place.sharded:
            return super().network()
        self.crew.ask("values")
        values, _ = self.crew.beside(self.first.values)
        with torch.no_grad():
            for name, value in values.items():
                self.given.get_parameter(name).copy_(value)
        return self.given

    def forward_backward(self, batches: Sequence[Batch], objective: Objective) -> dict[str, float]:
        self.begin()
        mine = self._deal("forward_backward", enough(batches, self.place.count), objective)
        found, _ = self.crew.beside(lambda: self.first.forward_backward(mine, objective))
        return found

    def gradient(self, batches: Sequence[Batch], objective: Objective) -> tuple[float, dict[str, Tensor]]:
        self.begin()
        mine = self._deal("gradient", enough(batches, self.place.count), objective)
        found, _ = self.crew.beside(lambda: self.first.gradient(mine, objective))
        return found

    def step(self) -> Moved:
        self.crew.ask("step")
        found, _ = self.crew.beside(self.first.step)
        return found

    def observe(self, value: float) -> None:
        self.crew.ask("observe", value)
        self.crew.beside(lambda: self.first.observe(value))

    def evaluate(self, examples: Sequence[Example], examiner: Examiner) -> Outcome:
        batches = evaluation_batches(examples, self.crew.work.plan)
        counted = [len(part) for part in dealt(batches, self.place.count)]
        mine = self._deal(ANSWERED, batches, examiner)
        found, others = self.crew.beside(lambda: self.first.outcomes(mine, examiner))
        told = zip(counted, [found, *others], strict=True)
        return Outcome.join([outcome for count, outcomes in told for outcome in outcomes[:count]])

    def save(self, to: Path) -> None:
        if self.place.sharded:
            self.crew.ask("save", to)
            self.crew.beside(lambda: self.first.save(to))
        else:
            self.first.save(to)

    def restore(self, at: Path, optimizer: bool = True) -> None:
        self.crew.ask("restore", at, optimizer)
        self.crew.beside(lambda: self.first.restore(at, optimizer))

    def begin(self) -> None:
        """Have what is kept of the rows: from the first process, or where none can go alone, from all together."""
        if self.first.begun:
            return
        if self.place.sharded:
            self.crew.ask("begin")
            self.crew.beside(self.first.begin)
        else:
            self.first.begin()
        self.models = self.first.models

    def _deal(self, verb: str, batches: Sequence[Batch], *given: Any) -> list[Batch]:
        """Ask the workers for something, each with its share of some batches; returns this process' share."""
        parts = dealt(batches, self.place.count)
        parts = filled(parts) if self.place.sharded else parts
        self.crew.deal(verb, [(part, *given) for part in parts[1:]])
        return parts[0]


_open: WeakSet[TorchrunSession] = WeakSet()


def _gpus() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0
