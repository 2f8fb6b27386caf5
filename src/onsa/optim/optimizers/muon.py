"""Muon: momentum made orthogonal (Jordan et al. 2024), torch's own, with AdamW for all that is no hidden matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from onsa.optim.optimizers.base import Beta, Optimizer


class Muon(Optimizer):
    """Muon for the matrices of the blocks; AdamW for embeddings, heads and vectors.

    A step of a matrix is scaled to the size of AdamW's (Liu et al. 2025, eq. 4), so that one rate serves both.

    momentum: share of the running mean of the gradient that stays.
    nesterov: look ahead along the momentum.
    betas: AdamW's running mean and running square.
    eps: keeps AdamW's quotient finite.
    """

    kind: ClassVar[str] = "muon"
    hidden_apart: ClassVar[bool] = True
    valuewise: ClassVar[bool] = False
    momentum: Beta = 0.95
    nesterov: bool = True
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8

    def build(self, groups: list[dict[str, Any]], fused: bool) -> torch.optim.Optimizer:
        hidden = [group for group in groups if group["hidden"]]
        others = [group for group in groups if not group["hidden"]]
        parts: list[torch.optim.Optimizer] = []
        if hidden:
            settings = {"momentum": self.momentum, "nesterov": self.nesterov, "adjust_lr_fn": "match_rms_adamw"}
            parts.append(torch.optim.Muon(hidden, **settings))  # type: ignore[arg-type]  # by name
        if others:
            parts.append(torch.optim.AdamW(others, betas=self.betas, eps=self.eps, fused=fused))
        return Joined(parts)


class Joined(torch.optim.Optimizer):
    """Optimizers over different parameters as one: its groups and its state are theirs."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = parts
        self._share()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = closure() if closure else None
        for part in self.parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        """Give each part its own groups of this one, and the state, which is one mapping for all."""
        start = 0
        for part in self.parts:
            end = start + len(part.param_groups)
            part.param_groups, part.state = self.param_groups[start:end], self.state
            start = end
