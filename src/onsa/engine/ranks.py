"""Ranks: several processes that train a network together, each with a share of every step's rows."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from onsa.engine.among import Among, Sums
from onsa.spec.errors import OnsaError, TrainingError

TIMEOUT = timedelta(minutes=30)  # of one exchange: a process may have more to do than another
BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}  # what is told in words goes over gloo on GPUs too
BUCKET = 16_000_000  # values of gradients that are exchanged at once


class ElsewhereError(Exception):
    """An error of another process, which tells of it itself."""


@dataclass(frozen=True)
class Place:
    """One process among ``count``: on which device, with how many CPU threads, with a whole network or a part of each
    block (``sharded``). All meet in a folder.
    """

    device: str
    rank: int
    count: int
    threads: int
    folder: Path
    sharded: bool = False

    @property
    def where(self) -> torch.device:
        """The device of this process."""
        return torch.device("cuda", self.rank) if self.device == "cuda" else torch.device("cpu")

    def join(self) -> None:
        """Meet the others."""
        if self.device == "cuda":
            torch.cuda.set_device(self.rank)
        store = distributed.FileStore(str(self.folder / "ranks"), self.count)  # type: ignore[attr-defined]
        settings: dict[str, Any] = {"rank": self.rank, "world_size": self.count, "timeout": TIMEOUT}
        told = sys.excepthook
        distributed.init_process_group(BACKENDS[self.device], store=store, **settings)
        sys.excepthook = told  # torch has every line of a traceback begin with the rank


class Ranks(Among):
    """Several processes with the whole network each: gradients, weights and figures are added up over all of them."""

    def __init__(self, place: Place) -> None:
        self.rank, self.count, self.device = place.rank, place.count, place.where

    def together(self, count: Callable[[], Sums], trainable: Mapping[str, nn.Parameter]) -> Sums:
        mine, fault = Sums(), None
        try:
            mine = count()
        except Exception as error:
            # The others wait for this one, and must hear of it; but who is in the middle of a network does not listen.
            if self.lockstep and not isinstance(error, TrainingError):
                raise
            fault = error
        there = [name for name, parameter in trainable.items() if parameter.grad is not None]
        told = self._told((mine, there, None if fault is None else sendable(fault)))
        for *_, other in told:
            if fault is not None or other is not None:
                raise fault or (other if isinstance(other, OnsaError) else ElsewhereError(str(other)))
        wanted = {name for _, names, _ in told for name in names}
        self._exchange([parameter for name, parameter in trainable.items() if name in wanted])
        total = Sums()
        for sums, *_ in told:
            total.add(sums.weight, sums.figures)
        return total

    def _told(self, mine: Any) -> list[Any]:
        """What each process has to say, by rank."""
        told: list[Any] = [None] * self.count
        distributed.all_gather_object(told, mine)
        return told

    @staticmethod
    def _exchange(parameters: list[nn.Parameter]) -> None:
        """Add up gradients over the processes, many at once."""
        bucket: list[nn.Parameter] = []
        held = 0
        for parameter in parameters:
            if bucket and held + parameter.numel() > BUCKET:
                _add_up(bucket)
                bucket, held = [], 0
            bucket.append(parameter)
            held += parameter.numel()
        if bucket:
            _add_up(bucket)


def _add_up(parameters: list[nn.Parameter]) -> None:
    gradients: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    parts = torch.split(flat, [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def sendable(fault: Exception) -> Exception:
    """An error as it can go to another process."""
    try:
        pickle.loads(pickle.dumps(fault))
    except Exception:
        return RuntimeError(f"{type(fault).__name__}: {fault}")
    return fault
