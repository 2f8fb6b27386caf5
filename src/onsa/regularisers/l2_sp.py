"""L2-SP: a pull to the pretrained weights (Li et al. 2018, eq. 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from onsa.adaptations.base import Adaptation
from onsa.models.policy import Policy
from onsa.regularisers.base import Regulariser
from onsa.spec.component import Form
from onsa.spec.errors import Problem, RecipeError

Strength = Annotated[float, Field(ge=0)]


class L2Sp(Regulariser):
    """``strength / 2 · ‖w - w₀‖² + strength_new / 2 · ‖v‖²`` on top of the mean loss: w are the base's weights that
    train, w₀ what they were, and v the weights that the base did not have.

    It takes the place of weight decay towards zero: set ``optimizer.weight_decay: 0`` beside it.

    strength: α of the paper.
    strength_new: β of the paper.
    """

    kind: ClassVar[str] = "l2-sp"
    copies: ClassVar[int] = 1
    strength: Strength = 0.01
    strength_new: Strength = 0.01

    def refuse(self, provides: Form, adaptation: Adaptation) -> Problem | None:
        return Problem("l2-sp-without-base", {}, key="regulariser") if adaptation.adapter else None

    def check(self, policy: Policy, new: frozenset[str]) -> None:
        if {name for name, parameter in policy.network.named_parameters() if parameter.requires_grad} <= new:
            raise RecipeError.of("l2-sp-without-base", key="regulariser")

    def penalty(
        self, trainable: Mapping[str, Tensor], start: Mapping[str, Tensor], new: frozenset[str]
    ) -> Tensor | None:
        if not self.strength and not self.strength_new:
            return None
        parts = [
            self.strength_new / 2 * value.square().sum()
            if name in new
            else self.strength / 2 * (value - start[name]).square().sum()
            for name, value in trainable.items()
        ]
        return sum(parts[1:], parts[0])
