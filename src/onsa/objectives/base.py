"""Objective: what is minimised. A loss is a sum and its weight; the loop divides once, over everything.

Shape legend: M predictions, A answers, P pairs of answers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from onsa.models.answers import Answers, in_order
from onsa.models.batch import Batch
from onsa.models.policy import Models
from onsa.spec.component import Component, Form


class Role(StrEnum):
    """A model that an objective asks beside the policy."""

    REFERENCE = "reference"  # what the policy began as


@dataclass(frozen=True)
class Loss:
    """A summed loss with its graph, the weight to divide it by, and sums of further figures (same weight)."""

    total: Tensor
    weight: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


LossOf = Callable[[Models, Batch], Loss]  # what an objective is, once it is asked


class Objective(Component):
    """The base of every objective. Objectives ask the models; they see no logits, masks, adapters or devices.

    ``reads`` are the forms of examples that it can learn from, ``uses`` the models that it asks beside the policy;
    ``companions`` tells whether training rows come with another row's answer.
    """

    reads: ClassVar[frozenset[Form]]
    uses: ClassVar[frozenset[Role]] = frozenset()
    companions: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, models: Models, batch: Batch) -> Loss:
        """The loss of one batch."""

    def foresee(self, models: Models, batch: Batch) -> tuple[Tensor, Tensor] | None:
        """What the loss of a step has to know of all its rows beforehand: this batch's part of a mean, as a sum and its
        weight. There is no graph."""
        return None

    def knowing(self, mean: float) -> LossOf:
        """The loss of a batch of a step, of which that mean is known."""
        return self


@dataclass(frozen=True)
class Compared:
    """Pairs of answers, by what a model thinks of each.

    first_P, second_P: of the better and the worse answer (of a tie, of either).
    win_P: how likely the first is the better one: 1, or 1/2 of a tie.
    weight_P: of each pair; those of a row add up to one.
    """

    first_P: Tensor
    second_P: Tensor
    win_P: Tensor
    weight_P: Tensor

    @staticmethod
    def of(batch: Batch, value_A: Tensor) -> Compared:
        """The pairs of a batch, by a value of each answer."""
        pairs, device = answers_of(batch).pairs(), value_A.device
        first_P, second_P = pairs.first_P.to(device), pairs.second_P.to(device)
        weight_P = pairs.weight_P.to(device) * counts(batch).to(device)[first_P]
        return Compared(value_A[first_P], value_A[second_P], pairs.win_P.to(device), weight_P)

    @property
    def margin_P(self) -> Tensor:
        return self.first_P - self.second_P

    @property
    def better_P(self) -> Tensor:
        """The better answer's value; of a tie, the mean of both."""
        return self.win_P * self.first_P + (1 - self.win_P) * self.second_P

    def either(self, loss_of: Callable[[Tensor], Tensor], smoothing: float = 0.0) -> Tensor:
        """The loss of each pair, ``loss_P``, for a loss of the margin by which the first is preferred.

        Args:
            smoothing: how likely it is that an order is the wrong way round.
        """
        right_P = self.win_P * (1 - smoothing) + (1 - self.win_P) * smoothing
        return right_P * loss_of(self.margin_P) + (1 - right_P) * loss_of(-self.margin_P)

    def loss(self, loss_P: Tensor) -> Loss:
        """The loss of all pairs, with the share that is in the right order (half of a tie) and the mean margin."""
        margin_P = self.margin_P.detach()
        right = (self.weight_P * in_order(self.win_P, margin_P)).sum()
        metrics = {"accuracy": right, "margin": (self.weight_P * margin_P).sum()}
        return Loss((self.weight_P * loss_P).sum(), self.weight_P.sum(), metrics)


def logistic(margin_P: Tensor) -> Tensor:
    """``-log σ(margin)``: the loss of a preference under Bradley and Terry's model (1952)."""
    return -functional.logsigmoid(margin_P)


def likelihoods(models: Models, batch: Batch) -> Tensor:
    """The log-probability of each answer under the policy, ``logprob_A``."""
    return answers_of(batch).summed(models.policy.logprobs(batch))


def log_ratios(models: Models, batch: Batch) -> Tensor:
    """How much more likely each answer is under the policy than under the reference: the log of it, ``ratio_A``."""
    assert models.reference is not None, "what an objective uses is there"
    logprob_M = models.policy.logprobs(batch)
    return answers_of(batch).summed(logprob_M - models.reference.logprobs(batch).to(logprob_M.device))


def a_token(batch: Batch, value_A: Tensor) -> Tensor:
    """A sum over each answer's predictions as the mean over them."""
    length_A = answers_of(batch).summed((batch.weight_M != 0).float()).clamp_min(1)
    return value_A / length_A.to(value_A.device)


def counts(batch: Batch) -> Tensor:
    """Which answers count, 1 or 0: of a batch that is there to keep step with other processes none does."""
    return (answers_of(batch).summed(batch.weight_M) > 0).float()


def answers_of(batch: Batch) -> Answers:
    """The parts of a batch whose rows hold answers."""
    assert batch.answers is not None, "rows that hold answers"
    return batch.answers
