"""Schedule-free AdamW (Defazio et al. 2024, algorithm 1), from the library schedulefree.

It keeps three points: z, where the steps go; x, the average of all z, which is what is deployed; and y between them,
where the gradient is taken. The library holds y in the parameters and z in its state; x follows from both.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from onsa.optim.optimizers.base import Beta, Optimizer

Gt0 = Annotated[float, Field(gt=0, lt=1)]


class ScheduleFree(Optimizer):
    """AdamW whose deployed weights are a running average, in place of a rate that falls.

    The rate stays constant after the warm-up; a schedule that lowers it is allowed, and warned of.

    betas: how near the gradient is taken to the average (0.9: a tenth of the way to the newest point), and decay of
        the running square of the gradient.
    eps: keeps the quotient finite.
    """

    kind: ClassVar[str] = "schedule-free"
    state_bytes: ClassVar[int] = 12  # z, the squares, and the average where it is measured and saved
    schedule: ClassVar[str] = "constant"
    betas: tuple[Gt0, Beta] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8

    def build(self, groups: list[dict[str, Any]], fused: bool) -> torch.optim.Optimizer:
        from schedulefree import AdamWScheduleFree

        optimizer: Any = AdamWScheduleFree(groups, betas=self.betas, eps=self.eps)
        optimizer.train()  # once: it stays there, and what is deployed is computed beside it
        return optimizer  # type: ignore[no-any-return]

    @torch.no_grad()
    def deployed(self, optimizer: torch.optim.Optimizer) -> dict[nn.Parameter, Tensor]:
        # y = (1 - β₁) z + β₁ x (eq. 1), solved for x.
        weight = 1 - 1 / self.betas[0]
        held = {cast(nn.Parameter, p): state["z"] for p, state in optimizer.state.items() if "z" in state}
        return {p: p.lerp(z, weight) for p, z in held.items()}
