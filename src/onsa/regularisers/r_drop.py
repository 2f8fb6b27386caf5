"""R-Drop: two passes with different dropout shall agree (Liang et al. 2021, eq. 4).

Shape legend: M predictions asked for, C classes or the vocabulary, L labels of which each is given or not.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from onsa.adaptations.base import Adaptation
from onsa.models.batch import Batch
from onsa.models.policy import Models, Policy
from onsa.objectives.base import Loss, LossOf
from onsa.regularisers.base import Regulariser, drops
from onsa.spec.component import Form
from onsa.spec.errors import Problem, RecipeError


class RDrop(Regulariser):
    """The mean of the losses of two passes, and ``strength`` times the mean of the Kullback-Leibler divergences between
    their predictions in both directions. Each step computes twice as much.

    The paper adds the two losses where this takes their mean, so its α is twice this ``strength``.

    strength: weight of the divergence; the paper's best values (α from 1 to 5) are 0.5 to 2.5.
    """

    kind: ClassVar[str] = "r-drop"
    passes: ClassVar[int] = 2
    strength: Annotated[float, Field(gt=0)] = 0.5

    def refuse(self, provides: Form, adaptation: Adaptation) -> Problem | None:
        alone = provides in (Form.SCORED, Form.RANKED)  # one number is no distribution
        return Problem("r-drop-without-distribution", {}, key="regulariser") if alone else None

    def check(self, policy: Policy, new: frozenset[str]) -> None:
        if not any(module.training and drops(module) > 0 for module in policy.network.modules()):
            raise RecipeError.of("r-drop-without-dropout", key="regulariser")

    def around(self, objective: LossOf) -> LossOf:
        return partial(self._twice, objective)

    def _twice(self, objective: LossOf, models: Models, batch: Batch) -> Loss:
        kept: list[Tensor] = []
        watched = replace(models, policy=replace(models.policy, keep=kept))
        one, other = objective(watched, batch), objective(watched, batch)
        between = _between_labels if batch.target_M.ndim == 2 else _between_classes
        first, second = kept
        weight_M = batch.weight_M.to(first.device)
        divergence = (weight_M * (between(first, second) + between(second, first)) / 2).sum()
        metrics = {name: (value + other.metrics[name]) / 2 for name, value in one.metrics.items()}
        return Loss(
            (one.total + other.total) / 2 + self.strength * divergence,
            one.weight,
            {**metrics, "divergence": divergence.detach()},
        )


def _between_classes(logit_MC: Tensor, other_MC: Tensor) -> Tensor:
    """``KL(p ‖ q)`` of each prediction, of p over classes."""
    log_p, log_q = logit_MC.log_softmax(1), other_MC.log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def _between_labels(logit_ML: Tensor, other_ML: Tensor) -> Tensor:
    """``KL(p ‖ q)`` of each prediction, the mean over labels, each of which is given or not."""
    p = logit_ML.sigmoid()
    given = p * (functional.logsigmoid(logit_ML) - functional.logsigmoid(other_ML))
    other = (1 - p) * (functional.logsigmoid(-logit_ML) - functional.logsigmoid(-other_ML))
    return (given + other).mean(1)
