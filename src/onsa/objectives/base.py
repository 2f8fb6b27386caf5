"""Objective: what is minimised. A loss is a sum and its weight; the loop divides once, over everything."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from onsa.models.batch import Batch
from onsa.models.policy import Models
from onsa.spec.component import Component, Form


@dataclass(frozen=True)
class Loss:
    """A summed loss with its graph, the weight to divide it by, and sums of further figures (same weight)."""

    total: Tensor
    weight: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


LossOf = Callable[[Models, Batch], Loss]  # what an objective is, once it is asked


class Objective(Component):
    """The base of every objective. Objectives ask the models; they see no logits, masks, adapters or devices."""

    reads: ClassVar[Form]

    @abstractmethod
    def __call__(self, models: Models, batch: Batch) -> Loss:
        """The loss of one batch."""
