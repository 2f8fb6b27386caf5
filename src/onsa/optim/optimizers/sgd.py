"""SGD: the gradient with momentum, torch's own."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import model_validator
from pydantic_core import PydanticCustomError

from onsa.optim.optimizers.base import Beta, Optimizer


class Sgd(Optimizer):
    """Stochastic gradient descent with momentum (Polyak 1964; Nesterov's form as in Sutskever et al. 2013).

    Its steps are as large as the gradient, so its rates are far from Adam's: ``onsa lr-find`` finds one.

    momentum: share of the step before that goes on.
    nesterov: look ahead along the momentum.
    """

    kind: ClassVar[str] = "sgd"
    state_bytes: ClassVar[int] = 4
    times: ClassVar[float] = 100.0
    momentum: Beta = 0.9
    nesterov: bool = False

    @model_validator(mode="after")
    def _momentum_to_look_along(self) -> Sgd:
        if self.nesterov and not self.momentum:
            raise PydanticCustomError("nesterov-still", "nesterov-still")
        return self

    def build(self, groups: list[dict[str, Any]], fused: bool) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, momentum=self.momentum, nesterov=self.nesterov, fused=fused)
