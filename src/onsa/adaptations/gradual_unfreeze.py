"""Gradual unfreezing: the head begins, and the blocks join it one by one from the top."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, ClassVar
from weakref import WeakKeyDictionary

from pydantic import Field
from torch import nn

from onsa.adaptations.base import WholeModel, narrowed
from onsa.models.blocks import blocks, depths
from onsa.models.heads import Head
from onsa.models.names import matching
from onsa.spec.errors import RecipeError

Places = tuple[int, list[tuple[nn.Parameter, int]]]
# Depths take a walk through all modules, and every step asks for them.
KNOWN: WeakKeyDictionary[nn.Module, dict[tuple[str, ...], Places]] = WeakKeyDictionary()


class GradualUnfreeze(WholeModel):
    """Train the head first, then block by block from the top, the embeddings last (Howard and Ruder 2018, section 3.3).

    What trains at a step depends on nothing but the step, and what has begun goes on. An output layer that shares the
    weight of the input embeddings gets one of its own.

    share: the share of the run after which everything trains; the stages before it are of equal length.
    """

    kind: ClassVar[str] = "gradual-unfreeze"
    unties: ClassVar[bool] = True
    staged: ClassVar[bool] = True
    rates: ClassVar[dict[Head, float]] = {Head.ROWS: 2e-4, Head.TOKENS: 5e-5}

    share: Annotated[float, Field(gt=0, lt=1)] = 0.5

    def chosen(self, network: nn.Module, head: Head) -> Iterable[str]:
        if not blocks(network):
            raise RecipeError.of("blocks-missing", key="adaptation", adaptation=self.kind)
        return (name for name, _ in network.named_parameters())

    def rate(self, head: Head, width: int) -> float:
        return narrowed(self.rates[head], width)

    def before_step(self, network: nn.Module, step: int, total: int) -> None:
        known = KNOWN.setdefault(network, {})
        if self.freeze not in known:
            known[self.freeze] = self._places(network)
        top, places = known[self.freeze]
        lowest = self.lowest(top, step, total)
        for parameter, depth in places:
            parameter.requires_grad_(depth >= lowest)

    def _places(self, network: nn.Module) -> Places:
        """The greatest depth, and what is not frozen by name with its depth."""
        depth, top = depths(network)
        frozen = matching(network, self.freeze, "adaptation.freeze")
        return top, [(p, depth(name)) for name, p in network.named_parameters() if name not in frozen]

    def lowest(self, top: int, step: int, total: int) -> int:
        """The lowest depth that trains at a step: the greatest one (the head) at first, 0 (embeddings) in the end."""
        return max(0, top - int(step * top / (self.share * total)))
