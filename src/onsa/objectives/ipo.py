"""IPO: a margin of a given size, in place of one that may grow without end."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from onsa.models.batch import Batch
from onsa.models.policy import Models
from onsa.objectives.base import Compared, Loss, Objective, Role, a_token, log_ratios
from onsa.spec.component import Form


class Ipo(Objective):
    """``(margin - 1 / 2β)²`` (Azar et al. 2023, eq. 17), where an answer's reward is the mean over its tokens of how
    much likelier the policy makes them than the reference does.

    beta: how closely the policy keeps to the reference (the paper's τ).
    """

    kind: ClassVar[str] = "ipo"
    reads: ClassVar[frozenset[Form]] = frozenset({Form.PREFERRED})
    uses: ClassVar[frozenset[Role]] = frozenset({Role.REFERENCE})
    beta: Annotated[float, Field(gt=0)] = 0.1

    def __call__(self, models: Models, batch: Batch) -> Loss:
        pairs = Compared.of(batch, a_token(batch, log_ratios(models, batch)))
        return pairs.loss(pairs.either(lambda margin_P: (margin_P - 1 / (2 * self.beta)).square()))
