"""GRPO: group relative policy optimisation, an answer against the other answers to its prompt."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from onsa.objectives.base import Given, Grouped


class Grpo(Grouped):
    """The clipped ratio of new to old likelihood times the advantage ``(reward - mean) / (std + 1e-4)`` of a group, the
    mean over an answer's tokens (Shao et al. 2024, eq. 3). Unlike bounds: Yu et al. 2025 (DAPO).

    beta: weight of the divergence from the reference; at 0 there is no reference.
    clip_low, clip_high: how far below and above 1 the ratio counts.
    """

    kind: ClassVar[str] = "grpo"

    def losses(self, given: Given) -> tuple[Tensor, Tensor]:
        loss_M, cut_M = self.clipped(given.moved_M, given.own("advantage"))
        if self.beta:
            loss_M = loss_M + self.beta * given.kl_M
        return given.mean(loss_M), given.mean(cut_M)
