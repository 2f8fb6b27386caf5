"""Which arithmetic a machine does fast: bf16 where the processor has it in hardware."""

from __future__ import annotations

import torch


def has_fast_bf16(device: str) -> bool:
    """Whether bf16 products run in hardware here. A fact of the machine, not a measurement: resuming must agree."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(probe() for name in probes if (probe := getattr(torch.cpu, name, None)) is not None)
