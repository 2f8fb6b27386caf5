"""Targets: the modules of a network that an adapter is put into, by their names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from torch import nn

from onsa.spec.errors import RecipeError

WITH_DATA = ("eva", "corda", "lora_ga")  # PEFT's beginnings of an adapter that look at rows before the first step

Names = str | Sequence[str]


def adaptable(network: nn.Module, train: frozenset[str]) -> dict[str, nn.Module]:
    """Modules with a matrix, by name, without those whose matrix trains itself."""
    from transformers.pytorch_utils import Conv1D

    kinds = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, Conv1D)
    modules = network.named_modules()
    return {name: module for name, module in modules if isinstance(module, kinds) and f"{name}.weight" not in train}


def targeted(network: nn.Module, given: Names, train: frozenset[str], key: str) -> list[str]:
    """What to name to PEFT for the modules that names at the end of their paths, or one expression, match.

    Raises:
        RecipeError: something matches no module that can be adapted, or one whose weight is another's too.
    """
    fit = adaptable(network, train)
    found: set[str] = set()
    said: list[str] = []
    for name in (given,) if isinstance(given, str) else given:
        places = (place for place, _ in network.named_modules() if matches(name, place))
        matched = {place for place in places if f"{place}.weight" not in train}  # what trains itself is not adapted
        said += sorted(matched & fit.keys()) if is_expression(name) else [name]
        # An expression means what it can; a name must not stand for a module that PEFT cannot adapt.
        if not matched & fit.keys() or not (is_expression(name) or matched <= fit.keys()):
            choices = ", ".join(sorted({place.rpartition(".")[2] for place in fit}))
            raise RecipeError.of("target-unmatched", key=key, value=name, choices=choices)
        found |= matched & fit.keys()
    uses = Counter(id(module.weight) for module in network.modules() if isinstance(module, nn.Linear | nn.Embedding))
    for place in sorted(found):
        if uses[id(fit[place].weight)] > 1:
            raise RecipeError.of("target-tied", key=key, value=place)
    return said


def matches(pattern: str, name: str) -> bool:
    """Whether a name, or an expression, stands for the module of a path."""
    if is_expression(pattern):
        return re.fullmatch(pattern, name) is not None
    return name == pattern or name.endswith(f".{pattern}")


def is_expression(pattern: str) -> bool:
    """Whether this is a regular expression and no plain name."""
    return re.fullmatch(r"[\w.-]*", pattern) is None
