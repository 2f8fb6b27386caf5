"""Last layers: the upper part of the network trains, the lower part stays as it is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, ClassVar

from pydantic import Field
from torch import nn

from onsa.adaptations.base import WholeModel, narrowed
from onsa.models import blocks as parts
from onsa.models.heads import Head
from onsa.spec.errors import RecipeError


class LastLayers(WholeModel):
    """Train the last blocks, what comes after them (a final norm, a pooler), and the head (Yosinski et al. 2014).

    An output layer that shares the weight of the input embeddings gets one of its own.

    blocks: how many, counted from the output.
    """

    kind: ClassVar[str] = "last-layers"
    unties: ClassVar[bool] = True
    rates: ClassVar[dict[Head, float]] = {Head.ROWS: 2e-4, Head.TOKENS: 5e-5}

    blocks: Annotated[int, Field(ge=1)] = 2

    def chosen(self, network: nn.Module, head: Head) -> Iterable[str]:
        found = len(parts.blocks(network))
        if found == 0:
            raise RecipeError.of("blocks-missing", key="adaptation", adaptation=self.kind)
        if self.blocks > found:
            raise RecipeError.of("blocks-too-many", key="adaptation.blocks", value=self.blocks, blocks=found)
        depth, top = parts.depths(network)
        upper = [name for name, _ in network.named_parameters() if depth(name) >= top - self.blocks]
        return {*upper, *parts.head_names(network)}

    def rate(self, head: Head, width: int) -> float:
        return narrowed(self.rates[head], width)
