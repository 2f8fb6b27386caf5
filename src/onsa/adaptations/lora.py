"""LoRA: a low-rank update beside frozen matrices (Hu et al. 2021, eq. 3), through PEFT, whose files it writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import nn

from onsa.adaptations.base import PeftAdapter
from onsa.models.heads import Head
from onsa.spec.errors import RecipeError


class Lora(PeftAdapter):
    """Train ``W + (alpha / rank) · B · A`` with ``W`` frozen; B starts at zero, so step zero equals the base.

    rank: inner width of the update.
    alpha: scale of the update; ``None`` is twice the rank.
    dropout: on the input of the update.
    targets: ``all-linear``, or names of the modules to adapt (whole names at the end of their path).
    """

    kind: ClassVar[str] = "lora"
    rates: ClassVar[dict[Head, float]] = {Head.ROWS: 1e-3, Head.TOKENS: 1e-3}

    rank: Annotated[int, Field(ge=1)] = 8
    alpha: Annotated[float, Field(gt=0)] | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: str | tuple[str, ...] = "all-linear"

    def config(self, network: nn.Module, train: frozenset[str], total: int) -> Any:
        from peft import LoraConfig

        wanted = (self.targets,) if isinstance(self.targets, str) else self.targets
        check_targets(network, wanted, train)
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha if self.alpha is not None else 2 * self.rank,
            lora_dropout=self.dropout,
            target_modules="all-linear" if "all-linear" in wanted else list(wanted),
        )


def check_targets(network: nn.Module, wanted: Sequence[str], train: frozenset[str]) -> None:
    """Match names as PEFT does, which refuses, in words of its own, a match that it cannot adapt.

    Raises:
        RecipeError: a name matches nothing that can be adapted.
    """
    from transformers.pytorch_utils import Conv1D

    kinds = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, Conv1D)
    modules = dict(network.named_modules())
    adaptable = {
        name for name, module in modules.items() if isinstance(module, kinds) and f"{name}.weight" not in train
    }
    for target in wanted:
        matched = [name for name in modules if name == target or name.endswith(f".{target}")]
        fits = adaptable.intersection(matched) and all(isinstance(modules[name], kinds) for name in matched)
        if target != "all-linear" and not fits:
            choices = ", ".join(sorted({name.rpartition(".")[2] for name in adaptable}))
            raise RecipeError.of("target-unmatched", key="adaptation.targets", value=target, choices=choices)
