"""AdamW: Adam with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2), torch's own."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from onsa.optim.optimizers.base import Beta, Optimizer


class AdamW(Optimizer):
    """Adam with decoupled weight decay.

    betas: decay of the running mean and of the running square of the gradient.
    eps: keeps the quotient finite.
    """

    kind: ClassVar[str] = "adamw"
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8

    def build(self, groups: list[dict[str, Any]], fused: bool) -> torch.optim.Optimizer:
        # Without the fused step torch takes its foreach form on a GPU, and one value after the other on a CPU.
        return torch.optim.AdamW(groups, betas=self.betas, eps=self.eps, fused=fused)
