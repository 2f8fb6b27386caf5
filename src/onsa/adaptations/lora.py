"""LoRA: a low-rank update beside frozen matrices (Hu et al. 2021, eq. 3), through PEFT, whose files it writes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor, nn

from onsa.adaptations.base import FILE, PeftAdapter, hushed
from onsa.models.heads import Head
from onsa.models.lowering import base_network
from onsa.models.quantize import is_quantised, rounding_lost
from onsa.models.targets import WITH_DATA, adaptable, matches, targeted
from onsa.spec.errors import ModelError, RecipeError

INITS = ("default", "gaussian", "orthogonal", "olora", "pissa", "pissa_niter_4", "loftq")
FAST_PISSA = re.compile(r"pissa_niter_\d+")
START = "adapter_at_start"  # where a network keeps what its adapter began from

Expression = Annotated[str, Field(min_length=1)]


class Lora(PeftAdapter):
    """Train ``W + (alpha / rank) · B · A`` with ``W`` frozen; B starts at zero, so step zero equals the base.

    rank: inner width of the update.
    alpha: scale of the update; ``None`` is twice the rank.
    dropout: on the input of the update.
    targets: ``all-linear``, names of the modules to adapt (whole names at the end of their path), or one regular
        expression over whole paths.
    exclude: modules that are not adapted, in the same ways.
    rank_pattern: other ranks for some modules, by regular expressions over the end of their path.
    alpha_pattern: other scales for some modules, in the same way.
    rslora: divide alpha by the rank's root in place of the rank (Kalajdzievski 2023).
    dora: train direction and length of the matrices apart (Liu et al. 2024).
    init: what A and B begin from: ``default``, ``gaussian``, ``orthogonal``, ``olora`` (Büyükakyüz 2024), ``pissa`` or
        its fast form ``pissa_niter_4`` (Meng et al. 2024), or ``loftq``: what the rounding of an ``nf4`` base lost, as
        far as the rank can hold it (Li et al. 2023, algorithm 1 with one pass, the base staying as it is).
    """

    kind: ClassVar[str] = "lora"
    rates: ClassVar[dict[Head, float]] = {Head.ROWS: 1e-3, Head.TOKENS: 1e-3}

    rank: Annotated[int, Field(ge=1)] = 8
    alpha: Annotated[float, Field(gt=0)] | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: str | tuple[str, ...] = "all-linear"
    exclude: str | tuple[str, ...] = ()
    rank_pattern: dict[Expression, Annotated[int, Field(ge=1)]] = Field(default={})
    alpha_pattern: dict[Expression, Annotated[float, Field(gt=0)]] = Field(default={})
    rslora: bool = False
    dora: bool = False
    init: str = "default"

    @field_validator("init")
    @classmethod
    def _known(cls, value: str) -> str:
        if value in WITH_DATA:
            raise PydanticCustomError("init-needs-data", "init-needs-data", {"choices": ", ".join(INITS)})
        if value not in INITS and not FAST_PISSA.fullmatch(value):
            near = get_close_matches(value, INITS, 1, 0.5) or INITS
            raise PydanticCustomError("value-unknown", "value-unknown", {"near": near[0], "choices": ", ".join(INITS)})
        return value

    @field_validator("targets", "exclude", "rank_pattern", "alpha_pattern")
    @classmethod
    def _expressions(cls, value: Any) -> Any:
        for pattern in (value,) if isinstance(value, str) else value:
            try:
                re.compile(pattern)
            except re.error as error:
                raise PydanticCustomError(
                    "expression-malformed", "expression-malformed", {"value": pattern, "reason": str(error)}
                ) from None
        return value

    @model_validator(mode="after")
    def _dora_of_the_base(self) -> Self:
        if self.dora and self._moves_base():
            raise PydanticCustomError("dora-init", "dora-init", {"value": self.init})
        return self

    def config(self, network: nn.Module, train: frozenset[str], total: int) -> Any:
        from peft import LoraConfig

        if self._moves_base() and any(map(is_quantised, network.parameters())):
            raise RecipeError.of("init-quantised", key="adaptation.init", value=self.init)
        everything = self.targets in ("all-linear", ("all-linear",))
        left_out = (self.exclude,) if isinstance(self.exclude, str) else self.exclude
        fit = adaptable(network, train)
        _check_matches(left_out, list(fit), "adaptation.exclude")
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha if self.alpha is not None else 2 * self.rank,
            lora_dropout=self.dropout,
            target_modules="all-linear" if everything else targeted(network, self.targets, train, "adaptation.targets"),
            exclude_modules=[name for name in fit if any(matches(pattern, name) for pattern in left_out)] or None,
            rank_pattern=dict(self.rank_pattern),
            alpha_pattern=dict(self.alpha_pattern),
            use_rslora=self.rslora,
            use_dora=self.dora,
            init_lora_weights=True if self.init in ("default", "loftq") else self.init,
        )

    def adapt(self, network: nn.Module, head: Head, train: frozenset[str], total: int) -> nn.Module:
        from peft import get_peft_model_state_dict
        from peft.tuners.lora import LoraLayer

        adapted = super().adapt(network, head, train, total)
        adapters = [name for name, module in base_network(adapted).named_modules() if isinstance(module, LoraLayer)]
        for key, given in (("rank_pattern", self.rank_pattern), ("alpha_pattern", self.alpha_pattern)):
            _check_matches([rf"(.*\.)?({pattern})" for pattern in given], adapters, f"adaptation.{key}", list(given))
        if self.init == "loftq":
            take_up_rounding(adapted)
        if self._moves_base():
            state = get_peft_model_state_dict(adapted)
            setattr(adapted, START, {name: value.detach().clone() for name, value in state.items()})
        return adapted

    def base(self, network: nn.Module) -> AbstractContextManager[None] | None:
        return None if self._moves_base() else super().base(network)

    def save(self, network: nn.Module, tokenizer: Any, folder: Path) -> None:
        super().save(network, tokenizer, folder)
        start = getattr(network, START, None)
        if start is not None:
            as_update(folder, start)

    def fold(self, network: nn.Module) -> nn.Module:
        if self.init == "loftq":  # in the base as it was, nothing is lost that the adapter would have to make up for
            raise ModelError.of("loftq-fold")
        return super().fold(network)

    def _moves_base(self) -> bool:
        """Whether the beginning takes a part out of the base's matrices."""
        return self.init == "olora" or self.init.startswith("pissa")


@torch.no_grad()
def take_up_rounding(network: nn.Module) -> None:
    """Let A and B of every adapted NF4 matrix begin as the best update of their rank towards the matrix as it was.

    Raises:
        RecipeError: no matrix of the base is held in NF4.
    """
    from peft.tuners.lora.bnb import Linear4bit

    layers = {name: module for name, module in base_network(network).named_modules() if isinstance(module, Linear4bit)}
    if not layers:
        raise RecipeError.of("loftq-unquantised", key="adaptation.init")
    lost = rounding_lost(base_network(network), {name: module.base_layer.weight for name, module in layers.items()})
    for name, lost_OI in lost:
        layer = layers[name]
        rank = layer.r["default"]
        # From a random projection twice as wide; its leading part is the SVD's own, nearly (Halko et al. 2011).
        left_OS, size_S, right_IS = torch.svd_lowrank(lost_OI, q=min(2 * rank, *lost_OI.shape), niter=8)
        root_R = size_S[:rank].sqrt()
        layer.lora_A["default"].weight.copy_(root_R[:, None] * right_IS[:, :rank].T)
        layer.lora_B["default"].weight.copy_(left_OS[:, :rank] * root_R / layer.scaling["default"])


def as_update(folder: Path, start: Mapping[str, Tensor]) -> None:
    """Rewrite a saved adapter that began from parts of the base, for the base as it was.

    The update is ``s · (B A - B₀ A₀)``, which is one adapter of twice the rank: ``s · [B, -B₀] [A; A₀]`` (Meng et al.
    2024, appendix C).
    """
    from peft import PeftConfig
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / FILE)
    for name, value in tensors.items():
        began = start[name].to(value)
        if ".lora_A." in name:
            tensors[name] = torch.cat([value, began], 0)
        elif ".lora_B." in name:
            tensors[name] = torch.cat([value, -began], 1)
    save_file(tensors, folder / FILE, {"format": "pt"})
    with hushed():
        config: Any = PeftConfig.from_pretrained(folder)
    factor = math.sqrt(2) if config.use_rslora else 2  # what keeps the scale at twice the rank
    config.init_lora_weights = True
    config.r *= 2
    config.lora_alpha *= factor
    config.rank_pattern = {name: 2 * rank for name, rank in config.rank_pattern.items()}
    config.alpha_pattern = {name: factor * alpha for name, alpha in config.alpha_pattern.items()}
    config.save_pretrained(folder)


def _check_matches(patterns: Any, names: list[str], key: str, said: Any = None) -> None:
    for pattern, words in zip(patterns, said or patterns, strict=True):
        if not any(matches(pattern, name) for name in names):
            choices = ", ".join(sorted({name.rpartition(".")[2] for name in names}))
            raise RecipeError.of("target-unmatched", key=key, value=words, choices=choices)
