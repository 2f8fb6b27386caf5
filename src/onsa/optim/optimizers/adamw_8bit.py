"""AdamW, 8 bit: the moments as bytes in blocks of 256 with a scale each (Dettmers et al. 2022), from bitsandbytes."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from onsa.optim.low_bit import steppable
from onsa.optim.optimizers.base import Beta, Optimizer


class AdamW8bit(Optimizer):
    """AdamW with both moments in 8 bits: a quarter of the optimizer's memory.

    Tensors of fewer than 4096 values keep theirs in 32 bits.

    betas: decay of the running mean and of the running square of the gradient.
    eps: keeps the quotient finite.
    """

    kind: ClassVar[str] = "adamw-8bit"
    state_bytes: ClassVar[int] = 2
    valuewise: ClassVar[bool] = False
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8

    def build(self, groups: list[dict[str, Any]], fused: bool) -> torch.optim.Optimizer:
        return steppable("AdamW8bit", groups, betas=self.betas, eps=self.eps)
