"""Quantised bases: the matrices of the blocks in 4 or 8 bits, through bitsandbytes; they are frozen, and what trains
lies beside them (QLoRA: Dettmers et al. 2023; LLM.int8: Dettmers et al. 2022).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor, nn

from onsa.models.blocks import blocks
from onsa.models.weights import weight_files
from onsa.spec.extras import require

Scheme = Literal["nf4", "int8"]
KEY = "model.quantize"


def settings(scheme: Scheme, skeleton: nn.Module) -> Any:
    """Transformers' configuration of a scheme.

    Args:
        skeleton: the network without weights; what lies outside its blocks (embeddings, a pooler, a head) stays.

    Raises:
        MachineError: bitsandbytes is not installed.
    """
    require("bitsandbytes", "low-bit", KEY)
    from transformers import BitsAndBytesConfig

    inside = tuple(f"{name}." for name, _ in blocks(skeleton))
    outside = [name for name, part in skeleton.named_modules() if _is_leaf(part) and not name.startswith(inside)]
    if scheme == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=outside)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        llm_int8_skip_modules=outside,
    )


def settle(network: nn.Module, dtype: torch.dtype) -> None:
    """Let quantised matrices multiply in a precision."""
    for module in network.modules():
        if type(module).__name__ == "Linear4bit" and is_quantised(module.weight):
            module.compute_dtype, module.compute_type_is_set = dtype, True  # type: ignore[assignment]
            # After an evaluation on such a CPU the library would keep the weights in a layout that has no gradient.
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def is_quantised(parameter: Any) -> bool:
    """Whether a parameter is held in whole numbers; such a one cannot train."""
    return not parameter.is_floating_point()


def move(owner: Any, name: str, device: torch.device) -> None:
    """Put a quantised parameter of a module on a device. Its scales move with it, so it is replaced as a whole."""
    parameter = getattr(owner, name)
    if parameter.device == device:
        return
    moved = parameter.to(device)
    state = getattr(owner, "state", None)
    if state is not None and state.SCB is not None:  # int8's scales lie in the module once it has multiplied
        moved.SCB = state.SCB.to(device)
    setattr(owner, name, moved)


def rounding_lost(network: Any, weights: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """What 4 bits took from matrices: the weights in the base's files less those held, with the modules' names, fp32.

    Args:
        weights: NF4 parameters, by their modules' names in the network.
    """
    from bitsandbytes.functional import dequantize_4bit

    places: dict[str, Path] = {}
    for file in weight_files(Path(network.config._name_or_path)):
        with safe_open(file, "pt") as opened:
            places |= dict.fromkeys(opened.keys(), file)
    for name, held in weights.items():
        stored = f"{name}.weight"
        if stored not in places:  # saved without a head
            stored = stored.removeprefix(f"{network.base_model_prefix}.")
        with safe_open(places[stored], "pt") as opened:
            was_OI = opened.get_tensor(stored).to(held.device, torch.float32)
        yield name, was_OI - dequantize_4bit(held.data, held.quant_state).float()


def count(parameter: Any) -> int:
    """The values that a parameter stands for: NF4 packs two into a byte."""
    state = getattr(parameter, "quant_state", None)
    return int(parameter.numel() if state is None else state.shape.numel())


def held_bytes(parameter: Any) -> int:
    """The bytes of a parameter, with the scales that it is quantised by."""
    state = getattr(parameter, "quant_state", None)
    scales: list[Tensor | None] = [getattr(parameter, "SCB", None)]
    if state is not None:
        scales += [state.absmax, state.code, state.offset]
        scales += [state.state2.absmax, state.state2.code] if state.nested else []
    return int(parameter.nbytes + sum(scale.nbytes for scale in scales if scale is not None))


def _is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None
