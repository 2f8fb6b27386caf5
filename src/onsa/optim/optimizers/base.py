"""Optimizer: how weights move, given their gradients."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from onsa.spec.component import Component


class Optimizer(Component):
    """The base of every optimizer.

    lr: the learning rate; found from the adaptation where not given.
    lr_new: the rate of parameters that the base does not have, such as a new head; ``lr`` where not given.
    weight_decay: decay of matrices; biases, norms and other vectors are exempt.
    """

    lr: Annotated[float, Field(gt=0)] | None = None
    lr_new: Annotated[float, Field(gt=0)] | None = None
    weight_decay: Annotated[float, Field(ge=0)] = 0.01

    @abstractmethod
    def build(self, network: nn.Module, new: frozenset[str], fused: bool) -> torch.optim.Optimizer:
        """The optimizer over what trains. Each group's ``base_lr`` is what a schedule multiplies.

        Args:
            new: names of parameters that the base did not have.
            fused: use torch's fused step, which differs from the plain one in float order only.
        """

    def groups(self, network: nn.Module, new: frozenset[str]) -> list[dict[str, object]]:
        """Trainable parameters by rate and decay, in the network's order."""
        assert self.lr is not None, "a resolved recipe has a learning rate"
        found: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in network.named_parameters():
            if not parameter.requires_grad:
                continue
            fresh = self.lr_new is not None and any(part in name for part in _stems(new))
            rate = self.lr_new if fresh and self.lr_new is not None else self.lr
            decay = self.weight_decay if parameter.ndim >= 2 else 0.0
            found.setdefault((rate, decay), []).append(parameter)
        return [
            {"params": parameters, "lr": rate, "base_lr": rate, "weight_decay": decay}
            for (rate, decay), parameters in found.items()
        ]


def _stems(new: frozenset[str]) -> set[str]:
    """Module names of new parameters: an adaptation may wrap a module, but keeps its name in the path."""
    return {name.rsplit(".", 1)[0] + "." for name in new}
