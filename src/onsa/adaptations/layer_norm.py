"""Layer norm: the scales and shifts of the norms alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from torch import nn

from onsa.adaptations.base import WholeModel
from onsa.models.heads import Head
from onsa.spec.errors import RecipeError


class LayerNorm(WholeModel):
    """Train the weights and biases of the norms and a new head, and nothing else (Zhao et al. 2024).

    A norm is a module whose class is called one: LayerNorm, RMSNorm and those that networks define for themselves.
    """

    kind: ClassVar[str] = "layer-norm"
    rates: ClassVar[dict[Head, float]] = {Head.ROWS: 3e-3, Head.TOKENS: 3e-3}

    def chosen(self, network: nn.Module, head: Head) -> Iterable[str]:
        norms = [(name, module) for name, module in network.named_modules() if "Norm" in type(module).__name__]
        found = {f"{name}.{leaf}" for name, module in norms for leaf, _ in module.named_parameters(recurse=False)}
        if not found:
            raise RecipeError.of("norms-missing", key="adaptation", adaptation=self.kind)
        return found
