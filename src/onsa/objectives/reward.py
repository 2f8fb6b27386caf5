"""Reward: a score for each answer, such that the better of two has the higher one."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from onsa.models.batch import Batch
from onsa.models.policy import Models
from onsa.objectives.base import Compared, Loss, Objective, logistic
from onsa.spec.component import Form


class Reward(Objective):
    """``-log σ(score of the better - score of the worse)`` (Ouyang et al. 2022, eq. 1), the mean over a row's pairs.

    centre: weight of ``(sum of both scores)²``, which keeps scores around zero (Eisenstein et al. 2023, section 2).
    """

    kind: ClassVar[str] = "reward"
    reads: ClassVar[frozenset[Form]] = frozenset({Form.RANKED})
    centre: Annotated[float, Field(ge=0)] = 0.0

    def __call__(self, models: Models, batch: Batch) -> Loss:
        pairs = Compared.of(batch, models.policy.classes(batch)[:, 0])
        loss_P = pairs.either(logistic)
        if self.centre:
            loss_P = loss_P + self.centre * (pairs.first_P + pairs.second_P).square()
        return pairs.loss(loss_P)
