"""Adaptation: which parameters of a network train."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from onsa.models.heads import Head
from onsa.spec.component import Component


class Adaptation(Component):
    """The base of every adaptation.

    ``adapter`` tells whether what is saved lies beside the base (an adapter) or replaces it (a whole model).
    ``rates`` are the learning rates a resolved recipe falls back to, by head.
    """

    adapter: ClassVar[bool]
    rates: ClassVar[dict[Head, float]]

    @abstractmethod
    def apply(self, network: nn.Module, head: Head, new: frozenset[str]) -> nn.Module:
        """The network with its trainable parameters marked; afterwards ``requires_grad`` is the only truth.

        Args:
            new: names of parameters that the base did not have; they always train.

        Raises:
            RecipeError: a setting does not fit this network.
        """

    @abstractmethod
    def save(self, network: nn.Module, tokenizer: Any, folder: Path) -> None:
        """Write what was tuned in the ecosystem's own format: PEFT's files for adapters, transformers' for models."""

    @abstractmethod
    def reload(self, network: nn.Module, folder: Path) -> nn.Module:
        """What ``save`` wrote, put on a freshly loaded base; what was tuned is marked by ``requires_grad``."""

    @abstractmethod
    def merge(self, network: nn.Module) -> nn.Module:
        """The network with the adaptation folded into its base weights, where that is possible."""
