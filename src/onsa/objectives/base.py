"""Objective: what is minimised. A loss is a sum and its weight; the loop divides once, over everything.

Shape legend: M predictions, A answers, P pairs of answers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from onsa.models.answers import Answers, in_order
from onsa.models.batch import Batch, Example
from onsa.models.policy import Models
from onsa.spec.component import Component, Form


class Role(StrEnum):
    """A model that an objective asks beside the policy."""

    REFERENCE = "reference"  # what the policy began as
    CRITIC = "critic"  # what says how much an answer is worth from each of its tokens on


@dataclass(frozen=True)
class Loss:
    """A summed loss with its graph, the weight to divide it by, and sums of further figures (same weight)."""

    total: Tensor
    weight: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


Floats = npt.NDArray[np.float64]
SMALLEST_SPREAD = 1e-4  # that is added to that of a group's rewards
LossOf = Callable[[Models, Batch], Loss]  # what an objective is, once it is asked


class Objective(Component):
    """The base of every objective. Objectives ask the models; they see no logits, masks, adapters or devices.

    ``reads`` are the forms of examples that it can learn from, ``uses`` the models that it asks beside the policy;
    ``companions`` tells whether training rows come with another row's answer.
    """

    reads: ClassVar[frozenset[Form]]
    uses: ClassVar[frozenset[Role]] = frozenset()
    companions: ClassVar[bool] = False

    @property
    def asks(self) -> frozenset[Role]:
        """Those of ``uses`` that it asks with these settings."""
        return self.uses

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


class Rewarded(Objective):
    """The base of objectives that learn from a policy's own answers, by what these were rewarded with.

    A batch tells of each token of an answer: ``drawn``, its log-probability as it was drawn; ``old``, the same as
    training computes it, for answers that the policy has learnt from before (else it is the policy's own, as it is);
    ``reference``, the reference's; ``value``, the critic's as it was; and what :meth:`credit` adds: ``advantage``, and
    ``return`` for a critic.

    beta: weight of the divergence from the reference, the mean over an answer's tokens (k3; Schulman 2020).
    """

    reads: ClassVar[frozenset[Form]] = frozenset({Form.PROMPTED})
    uses: ClassVar[frozenset[Role]] = frozenset({Role.REFERENCE})
    beta: Annotated[float, Field(ge=0)] = 0.0

    @property
    def asks(self) -> frozenset[Role]:
        return self.uses if self.beta else self.uses - {Role.REFERENCE}

    @property
    def remembers(self) -> bool:
        """Whether ``old`` is told of every answer."""
        return False

    @abstractmethod
    def credit(self, rows: Sequence[Example], beta: float) -> list[Example]:
        """Rows of answers that were graded, with what each token is told to be worth.

        Args:
            beta: the weight of the divergence as it is now.
        """

    def steered(self, rows: Sequence[Example], beta: float) -> float:
        """The weight of the divergence after some rows."""
        return beta


@dataclass(frozen=True)
class Given:
    """A batch of answers that were drawn, and what the policy now says to them."""

    batch: Batch
    logprob_M: Tensor

    def own(self, name: str) -> Tensor:
        """A figure that is told of each token; where it is not, the policy's own, as it is."""
        told_M = self.batch.told.get(name)
        return self.logprob_M.detach() if told_M is None else told_M.to(self.logprob_M.device)

    @property
    def moved_M(self) -> Tensor:
        """How much likelier each token has become since it was drawn: the log of it."""
        return self.logprob_M - self.own("old")

    @property
    def kl_M(self) -> Tensor:
        """The divergence from the reference at each token: ``exp(d) - d - 1``, where ``d`` is how much likelier the
        reference makes it (k3; Schulman 2020)."""
        ahead_M = self.own("reference") - self.logprob_M
        return ahead_M.exp() - ahead_M - 1

    def summed(self, value_M: Tensor) -> Tensor:
        """The sum over each answer's tokens, ``value_A``."""
        return answers_of(self.batch).summed(value_M * self.batch.weight_M.to(value_M.device))

    def mean(self, value_M: Tensor) -> Tensor:
        """The mean over each answer's tokens, ``value_A``."""
        return a_token(self.batch, self.summed(value_M))

    def watched(self) -> dict[str, Tensor]:
        """Figures of each token without a graph: the divergence from the reference, where that is told of; an estimate
        of the entropy, from the tokens that were drawn; how far the sampler's log-probability lies from training's."""
        now = Given(self.batch, self.logprob_M.detach())
        drawn_M = now.own("drawn")
        found = {"entropy": -drawn_M, "gap": (drawn_M - now.own("old")).abs()}
        return {"kl": now.kl_M, **found} if "reference" in self.batch.told else found


def clipped(ratio: Tensor, advantage: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """``-min(ratio · advantage, clip(ratio, 1 - low, 1 + high) · advantage)`` (Schulman et al. 2017, eq. 7), and where
    it is the clipped one that counts, 1 or 0."""
    plain, cut = ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage
    return -torch.minimum(plain, cut), (cut < plain).detach().float()


class Grouped(Rewarded):
    """The base of those that hold an answer's reward against those of the other answers to its prompt; their loss is
    the mean over answers.

    clip_low, clip_high: how far below and above 1 the ratio of new to old likelihood counts.
    """

    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    clip_high: Annotated[float, Field(gt=0)] = 0.2

    def credit(self, rows: Sequence[Example], beta: float) -> list[Example]:
        return [row.telling(advantage=row.spread(self.ahead(self.earned(row, beta)))) for row in rows]

    def earned(self, row: Example, beta: float) -> Floats:
        """The reward of each answer, ``reward_A``."""
        return row.graded["reward"]

    def ahead(self, reward_A: Floats) -> Floats:
        """By how much each answer of a group is better than the group is, in the group's spread, ``advantage_A``."""
        apart_A: Floats = reward_A - reward_A.mean()
        return apart_A / (float(reward_A.std(ddof=1)) + SMALLEST_SPREAD) if len(reward_A) > 1 else apart_A

    @abstractmethod
    def losses(self, given: Given) -> tuple[Tensor, Tensor]:
        """The loss of each answer, ``loss_A``, and the share of it that is clipped."""

    def clipped(self, log_ratio: Tensor, advantage: Tensor) -> tuple[Tensor, Tensor]:
        """As :func:`clipped`, within this objective's bounds."""
        return clipped(log_ratio.exp(), advantage, self.clip_low, self.clip_high)

    def __call__(self, models: Models, batch: Batch) -> Loss:
        given = Given(batch, models.policy.logprobs(batch))
        counts_A = counts(batch).to(given.logprob_M.device)
        loss_A, cut_A = self.losses(given)
        told = {"clip_share": cut_A, **{name: given.mean(value_M) for name, value_M in given.watched().items()}}
        metrics = {name: (counts_A * value_A).sum() for name, value_A in told.items()}
        return Loss((counts_A * loss_A).sum(), counts_A.sum(), metrics)


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
