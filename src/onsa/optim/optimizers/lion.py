"""Lion: the sign of a momentum (Chen et al. 2023, algorithm 2), from bitsandbytes."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from onsa.optim.low_bit import steppable
from onsa.optim.optimizers.base import Beta, Optimizer


class Lion(Optimizer):
    """Every value moves by the rate, up or down: one momentum to keep in place of two.

    betas: weights of the momentum in the step, and in its own running mean.
    """

    kind: ClassVar[str] = "lion"
    state_bytes: ClassVar[int] = 4
    times: ClassVar[float] = 0.3  # section 5: 3 to 10 times smaller than AdamW's
    betas: tuple[Beta, Beta] = (0.9, 0.99)

    def build(self, groups: list[dict[str, Any]], fused: bool) -> torch.optim.Optimizer:
        return steppable("Lion", groups, betas=self.betas)
