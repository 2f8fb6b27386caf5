"""Bottleneck: small networks between the layers of a frozen base.

Files: ``bottleneck.safetensors`` holds the adapters and what else trained, by its name in the network;
``bottleneck.json`` holds the settings that the adapters are built from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from onsa.adaptations.base import Adaptation
from onsa.models.blocks import blocks, outputs, width
from onsa.models.heads import Head
from onsa.models.load import first_line
from onsa.spec.errors import ModelError, RecipeError

WEIGHTS, CONFIG = "bottleneck.safetensors", "bottleneck.json"
FORMAT = 1
CHILD = "bottleneck"  # an adapter's name in the module whose result it changes
ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}
NAMED = 3  # tensors that an error lists


class Bottleneck(Adaptation):
    """Train ``h + up(f(down(h)))`` in each block of a frozen base; ``up`` starts at zero, so step zero equals the base.

    variant: ``houlsby`` puts one after each attention and one after the feed-forward part (Houlsby et al. 2019, section
        2.1), ``pfeiffer`` after the feed-forward part only, where Pfeiffer et al. 2020 put theirs. In both, the
        result is adapted before the block's residual is added, as in Houlsby et al. (in Pfeiffer et al. behind it).
    reduction: how many times narrower than the block's stream the inside is.
    activation: the function f.
    dropout: on the values inside.
    """

    kind: ClassVar[str] = "bottleneck"
    adapter: ClassVar[bool] = True
    saved_as: ClassVar[Literal["peft", "transformers", "onsa"]] = "onsa"
    merges: ClassVar[bool] = False  # f stands in the way
    rates: ClassVar[dict[Head, float]] = {Head.ROWS: 1e-3, Head.TOKENS: 1e-3}

    variant: Literal["houlsby", "pfeiffer"] = "houlsby"
    reduction: Annotated[int, Field(ge=1)] = 16
    activation: Literal["gelu", "relu", "silu"] = "gelu"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def adapt(self, network: nn.Module, head: Head, train: frozenset[str], total: int) -> nn.Module:
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name in train)
        found = list(self._found(network))
        for module, wide in found:
            inner = max(1, wide // self.reduction)
            module.add_module(CHILD, Adapter(wide, inner, ACTIVATIONS[self.activation](), self.dropout))
            module.register_forward_hook(_adapted)
        return network

    def _found(self, network: nn.Module) -> Iterator[tuple[nn.Module, int]]:
        """The modules whose results are adapted, with the width of these.

        Raises:
            RecipeError: the network has no blocks, or one of them no such place.
        """
        found = blocks(network)
        if not found:
            raise RecipeError.of("blocks-missing", key="adaptation", adaptation=self.kind)
        for name, block in found:
            ends = outputs(block)
            if not ends.attentions or ends.feed_forward is None:
                raise RecipeError.of("places-missing", key="adaptation", block=name)
            for place in (*(ends.attentions if self.variant == "houlsby" else ()), ends.feed_forward):
                yield block.get_submodule(place), width(block)

    def save(self, network: nn.Module, tokenizer: Any, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        named = network.named_parameters()
        kept = {name: p for name, p in named if p.requires_grad or f".{CHILD}." in name}
        save_file({name: p.detach().cpu().contiguous() for name, p in kept.items()}, folder / WEIGHTS)
        # What freezing by name did shows in the values themselves.
        settings = self.model_dump(mode="json", exclude={"freeze", "unfreeze"})
        (folder / CONFIG).write_text(json.dumps({"format": FORMAT, **settings}, indent=2) + "\n", encoding="utf-8")
        tokenizer.save_pretrained(folder)

    def reload(self, network: nn.Module, folder: Path) -> nn.Module:
        """As in the base class.

        Raises:
            ModelError: the files cannot be read, or were saved for another network.
        """
        settings, values = _read(folder)
        network = settings.adapt(network, Head.ROWS, frozenset(), 0)
        known = dict(network.named_parameters())
        fits = {name for name, value in values.items() if name in known and known[name].shape == value.shape}
        unfit = sorted(({name for name in known if f".{CHILD}." in name} | set(values)) - fits)
        if unfit:
            names = ", ".join(unfit[:NAMED]) + (", …" if len(unfit) > NAMED else "")
            raise ModelError.of("adapter-unfit", file=str(folder / WEIGHTS), names=names)
        with torch.no_grad():
            for name, value in values.items():
                known[name].requires_grad_(True).copy_(value)
        return network


class Adapter(nn.Module):
    """``h + up(f(down(h)))`` for hidden states ``hidden_BTD``, D wide outside and ``inner`` wide inside."""

    def __init__(self, wide: int, inner: int, activation: nn.Module, dropout: float) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(wide, inner), nn.Linear(inner, wide)
        self.activation, self.dropout = activation, nn.Dropout(dropout)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        added_BTD: Tensor = self.up(self.dropout(self.activation(self.down(hidden_BTD))))
        return hidden_BTD + added_BTD


def _adapted(module: nn.Module, inputs: Any, result: Any) -> Any:
    """The hook that puts a module's result through its adapter; experts may give more than their result."""
    adapter = module.get_submodule(CHILD)
    return (adapter(result[0]), *result[1:]) if isinstance(result, tuple) else adapter(result)


def _read(folder: Path) -> tuple[Bottleneck, dict[str, Tensor]]:
    """The settings and the tensors in a folder.

    Raises:
        ModelError: they cannot be read.
    """
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if settings.pop("format", None) != FORMAT or settings.pop("kind", None) != Bottleneck.kind:
            raise ModelError.of("adapter-format", file=str(folder / CONFIG), format=FORMAT)
        return Bottleneck(**settings), load_file(folder / WEIGHTS)
    except (OSError, ValueError, TypeError, AttributeError, ValidationError, SafetensorError) as error:
        raise ModelError.of("adapter-unreadable", file=str(folder), reason=first_line(error)) from None
