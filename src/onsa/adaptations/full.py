"""Full: every weight trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from onsa.adaptations.base import Adaptation
from onsa.models.heads import Head
from onsa.models.load import quiet


class Full(Adaptation):
    """Train every weight. The most capable and the most costly; right for small models and much data."""

    kind: ClassVar[str] = "full"
    adapter: ClassVar[bool] = False
    rates: ClassVar[dict[Head, float]] = {Head.ROWS: 2e-4, Head.TOKENS: 5e-5}

    def apply(self, network: nn.Module, head: Head, new: frozenset[str]) -> nn.Module:
        return network.requires_grad_(True)

    def save(self, network: nn.Module, tokenizer: Any, folder: Path) -> None:
        with quiet():
            network.save_pretrained(folder)  # type: ignore[operator]  # a transformers model
        tokenizer.save_pretrained(folder)

    def reload(self, network: nn.Module, folder: Path) -> nn.Module:
        return network.requires_grad_(True)  # the folder is a whole model, and was loaded as one

    def merge(self, network: nn.Module) -> nn.Module:
        return network
