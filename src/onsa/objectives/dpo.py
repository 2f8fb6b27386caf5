"""DPO: direct preference optimisation, a preference's likelihood with the policy itself as the reward."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from onsa.models.batch import Batch
from onsa.models.policy import Models
from onsa.objectives.base import Compared, Loss, Objective, Role, log_ratios, logistic
from onsa.spec.component import Form
from onsa.spec.sections import Share


class Dpo(Objective):
    """``-log σ(β · margin)`` (Rafailov et al. 2023, eq. 7): an answer's reward is how much likelier the policy makes it
    than the reference does.

    beta: how closely the policy keeps to the reference.
    loss: of the margin: ``sigmoid``, or ``hinge`` (Zhao et al. 2023, SLiC).
    label_smoothing: how likely it is that an order is the wrong way round (Mitchell 2023, conservative DPO).
    """

    kind: ClassVar[str] = "dpo"
    reads: ClassVar[frozenset[Form]] = frozenset({Form.PREFERRED})
    uses: ClassVar[frozenset[Role]] = frozenset({Role.REFERENCE})
    beta: Annotated[float, Field(gt=0)] = 0.1
    loss: Literal["sigmoid", "hinge"] = "sigmoid"
    label_smoothing: Share = 0.0

    def __call__(self, models: Models, batch: Batch) -> Loss:
        pairs = Compared.of(batch, self.beta * log_ratios(models, batch))
        return pairs.loss(pairs.either(logistic if self.loss == "sigmoid" else _hinge, self.label_smoothing))


def _hinge(margin_P: Tensor) -> Tensor:
    return (1 - margin_P).relu()
