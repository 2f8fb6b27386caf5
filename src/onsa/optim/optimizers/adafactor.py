"""Adafactor: squares of a matrix' gradient kept by row and column only (Shazeer and Stern 2018), torch's own."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from onsa.optim.optimizers.base import Optimizer


class Adafactor(Optimizer):
    """Adam's step from factored second moments, relative to each tensor's own size (algorithm 4).

    The rate is relative: a tensor moves by about ``lr`` times its root mean square, and never by more than
    ``1 / √step`` of it.

    beta2_decay: at step ``t`` the squares' running mean keeps the share ``1 - t^beta2_decay``.
    least: the size that a tensor counts for at least, so that zeros can leave their place.
    clip_update: the largest root mean square of an update before the rate.
    """

    kind: ClassVar[str] = "adafactor"
    state_bytes: ClassVar[int] = 0  # a row and a column of each matrix
    valuewise: ClassVar[bool] = False
    times: ClassVar[float] = 30.0  # the root mean square of a transformer's matrices is about 1/30
    beta2_decay: Annotated[float, Field(lt=0)] = -0.8
    least: Annotated[float, Field(gt=0)] = 1e-3
    clip_update: Annotated[float, Field(ge=1)] = 1.0

    def build(self, groups: list[dict[str, Any]], fused: bool) -> torch.optim.Optimizer:
        settings: dict[str, Any] = {"beta2_decay": self.beta2_decay, "eps": (None, self.least), "d": self.clip_update}
        return torch.optim.Adafactor(groups, **settings)
