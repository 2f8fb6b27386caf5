"""Tensors: an optimizer's state and other tensors as safetensors holds them, flat and by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def flat(state: Mapping[int, Mapping[str, Any]]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as named tensors and named numbers."""
    named = {f"{index}.{name}": value for index, values in state.items() for name, value in values.items()}
    tensors = {key: value for key, value in named.items() if isinstance(value, Tensor)}
    return tensors, {key: value for key, value in named.items() if key not in tensors}


def plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors without graph, device or strides."""
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def taken(tensors: dict[str, Tensor], prefix: str, device: torch.device | None = None) -> dict[str, Tensor]:
    """The tensors under a prefix, taken out of a mapping."""
    return {name[len(prefix) :]: tensors.pop(name).to(device) for name in list(tensors) if name.startswith(prefix)}
