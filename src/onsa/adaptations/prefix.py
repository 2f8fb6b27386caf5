"""Prefix tuning: trained keys and values in front of every row, in each layer (Li and Liang 2021, eq. 3); by PEFT."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from onsa.adaptations.base import SoftPrompt
from onsa.models.heads import Head


class Prefix(SoftPrompt):
    """Train keys and values that every token of every layer sees in front of its row.

    projection: width of a two-layer network that makes the keys and values while they train (Li and Liang 2021,
        section 4.3); without it they train themselves.
    init: begin from ``zero`` keys and values, which take attention away but point nowhere, or from ``random`` ones.
    """

    kind: ClassVar[str] = "prefix"
    rates: ClassVar[dict[Head, float]] = {Head.ROWS: 1e-2, Head.TOKENS: 1e-2}

    projection: Annotated[int, Field(ge=1)] | None = None
    init: Literal["zero", "random"] = "zero"

    def config(self, network: nn.Module, train: frozenset[str], total: int) -> Any:
        from peft import PrefixTuningConfig

        return PrefixTuningConfig(
            num_virtual_tokens=self.tokens,
            prefix_projection=self.projection is not None,
            encoder_hidden_size=self.projection,
            init_weights="zero" if self.init == "zero" else None,
        )
