"""GSPO: group sequence policy optimisation, with one ratio for an answer as a whole."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from onsa.objectives.base import Given, Grouped


class Gspo(Grouped):
    """As GRPO, with the ratio of whole answers' likelihoods to the power of one over their length (Zheng et al. 2025,
    eq. 5 to 7).

    beta: weight of the divergence from the reference; at 0 there is no reference.
    clip_low, clip_high: how far below and above 1 the ratio counts; of whole answers it moves little.
    """

    kind: ClassVar[str] = "gspo"
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 3e-4
    clip_high: Annotated[float, Field(gt=0)] = 4e-4

    def losses(self, given: Given) -> tuple[Tensor, Tensor]:
        loss_A, cut_A = self.clipped(given.mean(given.moved_M), given.mean(given.own("advantage")))
        return (loss_A + self.beta * given.mean(given.kl_M) if self.beta else loss_A), cut_A
