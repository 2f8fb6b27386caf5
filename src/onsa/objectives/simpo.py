"""SimPO: a preference by mean likelihoods, without a reference."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from onsa.models.batch import Batch
from onsa.models.policy import Models
from onsa.objectives.base import Compared, Loss, Objective, a_token, likelihoods, logistic
from onsa.spec.component import Form


class Simpo(Objective):
    """``-log σ(β · margin - γ)`` (Meng et al. 2024, eq. 6), where an answer's reward is the mean log-probability of its
    tokens.

    beta: the scale of the margin.
    gamma: the margin that is aimed at, after scaling.
    """

    kind: ClassVar[str] = "simpo"
    reads: ClassVar[frozenset[Form]] = frozenset({Form.PREFERRED})
    beta: Annotated[float, Field(gt=0)] = 2.0
    gamma: Annotated[float, Field(ge=0)] = 1.0

    def __call__(self, models: Models, batch: Batch) -> Loss:
        pairs = Compared.of(batch, self.beta * a_token(batch, likelihoods(models, batch)))
        return pairs.loss(pairs.either(lambda margin_P: logistic(margin_P - self.gamma)))
