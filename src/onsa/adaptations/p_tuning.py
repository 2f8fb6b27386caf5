"""P-tuning: a small network makes the embeddings in front of every row (Liu et al. 2021, section 3.2), through PEFT."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from torch import nn

from onsa.adaptations.base import SoftPrompt
from onsa.models.heads import Head


class PTuning(SoftPrompt):
    """Train a network that makes embeddings for the front of every row; they are saved, and the network is not.

    encoder: ``mlp``, three products with ReLU between them, or ``lstm``, a bidirectional LSTM with two products behind.
    width: of the encoder's inner layers; the width of the base's embeddings if not given.
    layers: of the LSTM; two if not given.
    dropout: between the LSTM's layers.
    """

    kind: ClassVar[str] = "p-tuning"
    rates: ClassVar[dict[Head, float]] = {Head.ROWS: 3e-3, Head.TOKENS: 3e-3}

    encoder: Literal["mlp", "lstm"] = "mlp"
    width: Annotated[int, Field(ge=1)] | None = None
    layers: Annotated[int, Field(ge=1)] | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None

    @model_validator(mode="after")
    def _settings_where_used(self) -> Self:
        if self.encoder == "mlp" and (self.layers is not None or self.dropout is not None):
            raise PydanticCustomError("p-tuning-mlp", "p-tuning-mlp")
        if self.dropout and self.layers == 1:
            raise PydanticCustomError("p-tuning-one-layer", "p-tuning-one-layer")
        return self

    def config(self, network: nn.Module, train: frozenset[str], total: int) -> Any:
        from peft import PromptEncoderConfig, PromptEncoderReparameterizationType

        return PromptEncoderConfig(
            num_virtual_tokens=self.tokens,
            encoder_reparameterization_type=PromptEncoderReparameterizationType(self.encoder.upper()),
            encoder_hidden_size=self.width or network.get_input_embeddings().embedding_dim,  # type: ignore[operator]
            encoder_num_layers=self.layers or 2,
            encoder_dropout=self.dropout or 0.0,
        )
