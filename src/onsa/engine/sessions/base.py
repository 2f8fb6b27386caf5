"""Session: where steps run. The loop sees these verbs and nothing of devices, precision or optimizers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from onsa.accel.plan import Plan
from onsa.adaptations.base import Adaptation
from onsa.models.batch import Batch, Example
from onsa.models.policy import Models
from onsa.objectives.base import Objective, Role
from onsa.optim.optimizers.base import Optimizer
from onsa.optim.schedules.base import Schedule
from onsa.regularisers.base import Regulariser
from onsa.spec.component import Component
from onsa.spec.errors import Problem
from onsa.tasks.base import Examiner, Outcome


@dataclass(frozen=True)
class Work:
    """What a session trains, and with what.

    network: adapted, its trainable parameters marked; ``new`` names those that the base did not have.
    adaptation, regularisers: what they do in a step, they are asked for.
    total: optimizer steps of the whole run, which the schedule spans.
    base: what the network's frozen values are known by.
    sides: the rows that steps and evaluations will ask for, as far as they are known.
    uses: the models that the objective asks beside the policy.
    live: the rows of a step are made on the way, from the policy as it is then.
    temperature: what the policy's logits are divided by.
    """

    network: nn.Module
    adaptation: Adaptation
    regularisers: tuple[Regulariser, ...]
    new: frozenset[str]
    pad_id: int
    plan: Plan
    optimizer: Optimizer
    schedule: Schedule
    precision: str
    clip: float | None
    seed: int
    total: int
    base: str
    sides: tuple[Sequence[Example], ...]
    uses: frozenset[Role] = frozenset()
    live: bool = False
    temperature: float = 1.0


@dataclass(frozen=True)
class Moved:
    """One movement of the weights: see :class:`onsa.engine.events.Stepped`."""

    lr: float
    rates: dict[str, float]
    grad_norm: float
    metrics: dict[str, float]


@dataclass(frozen=True)
class Copies:
    """How often values are held in the memory of one device, or in this machine's where the device is the CPU.

    processes: that share this memory.
    blocks, outside: of a network's blocks, and of what lies outside them, for each value that trains.
    """

    processes: int = 1
    blocks: float = 1.0
    outside: float = 1.0


class Session(ABC):
    """Steps on some device or devices."""

    models: Models

    def network(self) -> nn.Module:
        """The network, whole, with the values of what trains as they are now."""
        found: nn.Module = self.models.policy.network
        return found

    @abstractmethod
    def close(self) -> None:
        """Let go of what is held beside this process' memory; the session takes no more steps."""

    @abstractmethod
    def begin(self) -> None:
        """Have what is kept beside the rows, while the network still is what it began as; else the first step does."""

    @abstractmethod
    def forward_backward(self, batches: Sequence[Batch], objective: Objective) -> dict[str, float]:
        """Gradients of the sum of the batches' losses; returns means over their weight (``loss`` and more)."""

    @abstractmethod
    def gradient(self, batches: Sequence[Batch], objective: Objective) -> tuple[float, dict[str, Tensor]]:
        """The mean loss of some batches and its gradient by name, without dropout or noise; nothing moves."""

    @abstractmethod
    def step(self) -> Moved:
        """Divide the gradient by the weight, clip, move the weights."""

    @abstractmethod
    def observe(self, value: float) -> None:
        """Take note of the watched validation metric, with the sign at which less is better."""

    @abstractmethod
    def evaluate(self, examples: Sequence[Example], examiner: Examiner) -> Outcome:
        """What the model makes of some examples now, without gradients or dropout."""

    @abstractmethod
    def save(self, to: Path) -> None:
        """Write what trains, and the optimizer's state, into a folder."""

    @abstractmethod
    def restore(self, at: Path, optimizer: bool = True) -> None:
        """Read what ``save`` wrote; without the optimizer's state, only the weights as they are to be deployed."""


class Engine(Component):
    """The base of every engine: it opens a session for some work."""

    @abstractmethod
    def place(self) -> str:
        """``cpu`` or ``cuda``: where the steps will run."""

    @property
    def copies(self) -> Copies:
        """How often a run's values are held where :meth:`place` says."""
        return Copies()

    def refuse(self, adaptation: Adaptation, optimizer: Optimizer, quantize: str | None) -> Problem | None:
        """Why steps of this kind cannot run here, if so."""
        return None

    @property
    def alone(self) -> bool:
        """Whether one process takes all steps, and so can draw answers between them."""
        return True

    @abstractmethod
    def open(self, work: Work) -> Session:
        """A session that holds the work's network."""
