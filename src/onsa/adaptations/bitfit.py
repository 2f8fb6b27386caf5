"""BitFit: biases alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from torch import nn

from onsa.adaptations.base import WholeModel
from onsa.models.blocks import head_names
from onsa.models.heads import Head
from onsa.spec.errors import RecipeError


class BitFit(WholeModel):
    """Train the biases of the network and a new head, and nothing else (Zaken et al. 2022)."""

    kind: ClassVar[str] = "bitfit"
    rates: ClassVar[dict[Head, float]] = {Head.ROWS: 1e-3, Head.TOKENS: 1e-3}

    def chosen(self, network: nn.Module, head: Head) -> Iterable[str]:
        biases = {name for name, _ in network.named_parameters() if name.rpartition(".")[2] == "bias"}
        if biases <= head_names(network):
            raise RecipeError.of("biases-missing", key="adaptation", adaptation=self.kind)
        return biases
