"""RLOO: REINFORCE with the other answers to a prompt as the baseline."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from torch import Tensor

from onsa.models.batch import Example
from onsa.objectives.base import Floats, Given, Grouped


class Rloo(Grouped):
    """The ratio of new to old likelihood of a whole answer, clipped, times its reward less the mean of the others'
    (Ahmadian et al. 2024, eq. 8).

    beta: weight of the divergence from the reference, ``Σ (log p - log p of the reference)``, taken off the reward; at
        0 there is no reference.
    clip_low, clip_high: how far below and above 1 the ratio counts.
    """

    kind: ClassVar[str] = "rloo"

    @property
    def remembers(self) -> bool:
        return self.beta > 0

    def earned(self, row: Example, beta: float) -> Floats:
        reward_A = row.graded["reward"]
        if not self.beta:
            return reward_A
        apart_T = row.told["old"] - row.told["reference"]
        return reward_A - beta * np.asarray([apart_T[answer].sum() for answer in row.answers()])

    def ahead(self, reward_A: Floats) -> Floats:
        others = len(reward_A) - 1
        return reward_A - (reward_A.sum() - reward_A) / others if others else reward_A * 0

    def losses(self, given: Given) -> tuple[Tensor, Tensor]:
        return self.clipped(given.summed(given.moved_M), given.mean(given.own("advantage")))
