"""Full: every weight trains."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from torch import nn

from onsa.adaptations.base import WholeModel, narrowed
from onsa.models.heads import Head


class Full(WholeModel):
    """Train every weight. The most capable and the most costly; right for small models and much data."""

    kind: ClassVar[str] = "full"
    rates: ClassVar[dict[Head, float]] = {Head.ROWS: 2e-4, Head.TOKENS: 5e-5}

    def chosen(self, network: nn.Module, head: Head) -> Iterable[str]:
        return (name for name, _ in network.named_parameters())

    def rate(self, head: Head, width: int) -> float:
        return narrowed(self.rates[head], width)
