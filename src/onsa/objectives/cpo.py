"""CPO: contrastive preference optimisation, likelihoods without a reference and the better answer learnt as well."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from onsa.models.batch import Batch
from onsa.models.policy import Models
from onsa.objectives.base import Compared, Loss, Objective, a_token, likelihoods, logistic
from onsa.spec.component import Form
from onsa.spec.sections import Share


class Cpo(Objective):
    """``-log σ(β · margin) - α · mean log p of the better answer's tokens`` (Xu et al. 2024, eq. 5 and 6), where an
    answer's reward is its log-probability.

    beta: the scale of the margin.
    alpha: weight of learning the better answer.
    label_smoothing: how likely it is that an order is the wrong way round.
    """

    kind: ClassVar[str] = "cpo"
    reads: ClassVar[frozenset[Form]] = frozenset({Form.PREFERRED})
    beta: Annotated[float, Field(gt=0)] = 0.1
    alpha: Annotated[float, Field(ge=0)] = 1.0
    label_smoothing: Share = 0.0

    def __call__(self, models: Models, batch: Batch) -> Loss:
        logprob_A = likelihoods(models, batch)
        means = Compared.of(batch, a_token(batch, logprob_A))
        pairs = Compared.of(batch, self.beta * logprob_A)
        return pairs.loss(pairs.either(logistic, self.label_smoothing) - self.alpha * means.better_P)
