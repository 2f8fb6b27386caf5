"""Head: feature extraction: the base stays as it is, and a new head learns to read its features."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from torch import nn

from onsa.adaptations.base import WholeModel
from onsa.models.blocks import head_modules, head_names
from onsa.models.heads import Head


class HeadOnly(WholeModel):
    """Train the head alone, on the features that the frozen base gives (Donahue et al. 2014).

    The base works as in use, without dropout. For a language model the head is the output layer, which gets a weight of
    its own where it shares that of the input embeddings.
    """

    kind: ClassVar[str] = "head"
    unties: ClassVar[bool] = True
    keeps_base: ClassVar[bool] = True
    rates: ClassVar[dict[Head, float]] = {Head.ROWS: 1e-2, Head.TOKENS: 1e-3}

    def chosen(self, network: nn.Module, head: Head) -> Iterable[str]:
        return head_names(network)

    def train_mode(self, network: nn.Module) -> None:
        network.eval()
        for _, module in head_modules(network):
            module.train()
