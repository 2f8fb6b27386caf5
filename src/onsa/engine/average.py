"""Average: a running mean of the weights, beside those that train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from onsa.regularisers.base import Regulariser


class Average:
    """A running average of the weights, as regularisers weigh it; empty where none of them keeps one."""

    def __init__(self, trainable: Mapping[str, Tensor], regularisers: Sequence[Regulariser]) -> None:
        self.kinds = [regulariser for regulariser in regularisers if regulariser.share(0, 1) is not None]
        self.values = {name: p.detach().clone() for name, p in trainable.items()} if self.kinds else {}

    @torch.no_grad()
    def update(self, trainable: Mapping[str, Tensor], step: int, total: int) -> None:
        for kind in self.kinds:
            share = kind.share(step, total)
            if share:
                torch._foreach_lerp_(list(self.values.values()), [trainable[name] for name in self.values], share)
