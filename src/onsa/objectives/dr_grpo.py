"""Dr. GRPO: GRPO without what its two divisions favour, long wrong answers and prompts that are very easy or hard."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from onsa.objectives.base import Floats, Given, Grouped


class DrGrpo(Grouped):
    """As GRPO, but the advantage is not divided by the group's spread, and an answer's tokens are summed and divided by
    one constant (Liu et al. 2025, section 3.2).

    beta: weight of the divergence from the reference; at 0 there is no reference.
    clip_low, clip_high: how far below and above 1 the ratio counts.
    longest: the constant: tokens that an answer may have.
    """

    kind: ClassVar[str] = "dr-grpo"
    longest: Annotated[int, Field(ge=1)] = 64

    def ahead(self, reward_A: Floats) -> Floats:
        return reward_A - float(reward_A.mean())

    def losses(self, given: Given) -> tuple[Tensor, Tensor]:
        loss_M, cut_M = self.clipped(given.moved_M, given.own("advantage"))
        if self.beta:
            loss_M = loss_M + self.beta * given.kl_M
        return given.summed(loss_M) / self.longest, given.mean(cut_M)
