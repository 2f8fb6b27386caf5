"""Prompt tuning: trained embeddings in front of every row (Lester et al. 2021, section 2), through PEFT."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from torch import nn

from onsa.adaptations.base import SoftPrompt
from onsa.models.heads import Head


class Prompt(SoftPrompt):
    """Train a few embeddings that stand in front of every row, and nothing else; for large bases and many tasks.

    init: begin from ``random`` vectors, from the embeddings of random tokens of the ``vocabulary``, or of a ``text``
        (Lester et al. 2021, section 3.2).
    text: what to begin from, repeated or cut to the number of tokens; for ``init: text``.
    """

    kind: ClassVar[str] = "prompt"
    rates: ClassVar[dict[Head, float]] = {Head.ROWS: 3e-2, Head.TOKENS: 3e-2}

    init: Literal["random", "vocabulary", "text"] = "vocabulary"
    text: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _text_where_used(self) -> Self:
        if (self.init == "text") != (self.text is not None):
            raise PydanticCustomError("prompt-text-unfit", "prompt-text-unfit")
        return self

    def config(self, network: nn.Module, train: frozenset[str], total: int) -> Any:
        from peft import PromptTuningConfig, PromptTuningInit

        names = {"random": "RANDOM", "vocabulary": "SAMPLE_VOCAB", "text": "TEXT"}
        return PromptTuningConfig(
            num_virtual_tokens=self.tokens,
            prompt_tuning_init=PromptTuningInit(names[self.init]),
            prompt_tuning_init_text=self.text,
            tokenizer_name_or_path=str(network.name_or_path) if self.text else None,
        )
