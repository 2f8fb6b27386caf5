"""Among: the processes that take a session's steps together, and what of the network each of them holds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from onsa.models.load import hold_in


@dataclass
class Sums:
    """What some batches add up to: their weight, and figures by name."""

    weight: float = 0.0
    figures: dict[str, float] = field(default_factory=lambda: {"loss": 0.0})

    def add(self, weight: float, figures: Mapping[str, float]) -> None:
        self.weight += weight
        for name, figure in figures.items():
            self.figures[name] = self.figures.get(name, 0.0) + figure


class Among(ABC):
    """The base of all: one process, several with the same network, several with a part of it each.

    rank: this process's place.
    lockstep: all go through the network at the same time, so that none can do a part of a step over by itself.

    What is said here is right wherever every process holds the whole network.
    """

    rank: int
    lockstep: bool = False

    @abstractmethod
    def together(self, count: Callable[[], Sums], trainable: Mapping[str, nn.Parameter]) -> Sums:
        """The sums of all processes, and in each the gradients of all; ``count`` makes this one's."""

    def settle(self, network: nn.Module, precision: str, device: torch.device) -> None:
        """Put on the device what this process holds of a network."""
        hold_in(network, precision, device)

    def moved(self, network: nn.Module) -> dict[str, nn.Parameter]:
        """What this process moves, by the names of the parameters that it is, or is a part of."""
        return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}

    def owned(self, name: str) -> bool:
        """Whether of a parameter this process moves a part that no other has."""
        return False

    def norm(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """The norm of all gradients; these are by the names of what this process moves."""
        return torch.nn.utils.get_total_norm(list(gradients.values()))

    def added(self, value: float) -> float:
        """The sum, over the processes, of what each finds for the parts that it owns."""
        return value

    def whole(self, value: Tensor, name: str = "") -> Tensor:
        """A parameter, or (with its name) a value in the shape of this process's part of it, as a whole."""
        return value

    def part(self, value: Tensor, name: str) -> Tensor:
        """This process's part of a value in the shape of a parameter."""
        return value

    def agreed(self, cuts: list[int]) -> list[int]:
        """What any of those asks for that go through the network at the same time as this one."""
        return cuts


class Alone(Among):
    """One process."""

    rank = 0

    def together(self, count: Callable[[], Sums], trainable: Mapping[str, nn.Parameter]) -> Sums:
        return count()
