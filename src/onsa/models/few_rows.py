"""Few rows: a product of a handful of rows with a large matrix, laid the other way round where that is faster.

In decoding each forward has as many rows as answers are being given, and nearly all its time is the reading of weights.
A library chooses how it walks through a product by its shape, and for some counts of rows badly: of MKL's fp32 products
on AVX-512, sixteen rows with ``x Wᵀ`` take over twice the time that they take as ``(W xᵀ)ᵀ``, the copy that lays the
result back included. Which counts these are is measured, with the network's own matrices, which no cache holds.

Shape legend: N rows, I width of the input, O of the output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from onsa.models.lowering import base_network
from onsa.models.timing import remembered

COUNTS = (2, 4, 8, 16, 32)  # rows for which both ways are measured; counts between go as the next lower
LARGE = 1 << 17  # numbers in a matrix, from which on it is worth while
MATRICES = 8  # of one shape that a measurement goes through
REPEATS = 3
GAIN = 1.1  # from which on it pays


def turned(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """``x Wᵀ + b`` as ``(W xᵀ)ᵀ + b``."""
    y_NO = (weight_OI @ x_NI.T).T.contiguous()
    return y_NO if bias_O is None else y_NO.add_(bias_O)


Pays = Sequence[bool]
WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"straight": functional.linear, "turned": turned}


def product(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, pays: Pays) -> Tensor:
    """``x Wᵀ + b``, the way that pays."""
    rows = len(x_NI)
    return (turned if rows < len(pays) and pays[rows] else functional.linear)(x_NI, weight_OI, bias_O)


def turn(network: nn.Module) -> None:
    """Let a network's linear layers go the faster way for few rows each. On a GPU nothing changes."""
    linears = [module for module in base_network(network).modules() if type(module) is nn.Linear]
    linears = [module for module in linears if "forward" not in vars(module)]
    for module, pays in zip(linears, measured([module.weight for module in linears]), strict=True):
        if any(pays):
            module.forward = _forward(module, pays)  # type: ignore[method-assign, assignment]


def measured(weights: Sequence[Tensor]) -> list[Pays]:
    """For each matrix, whether the other way round is faster, by the number of rows; nothing for those that are small
    or not in a CPU's memory."""
    alike: dict[tuple[torch.Size, torch.dtype], list[Tensor]] = {}
    for weight_OI in weights:
        alike.setdefault((weight_OI.shape, weight_OI.dtype), []).append(weight_OI)
    found = {key: _pays(some[:MATRICES]) if _large(some[0]) else () for key, some in alike.items()}
    return [found[weight_OI.shape, weight_OI.dtype] for weight_OI in weights]


def _large(weight_OI: Tensor) -> bool:
    return weight_OI.device.type == "cpu" and weight_OI.numel() >= LARGE


def _pays(weights: Sequence[Tensor]) -> Pays:
    (outer, inner), dtype = weights[0].shape, weights[0].dtype

    def job(count: int, way: str) -> Callable[[], None]:
        x_NI = torch.randn(count, inner).to(dtype)

        def once() -> None:
            for weight_OI in weights:
                WAYS[way](x_NI, weight_OI)

        return once

    pays = [False] * (COUNTS[-1] + 1)
    for count in COUNTS:
        of = f"{count} {inner} {outer} {dtype}"
        spent = remembered("few-rows", of, WAYS, partial(job, count), REPEATS)
        pays[count:] = [spent["straight"] >= GAIN * spent["turned"]] * len(pays[count:])
    return pays


def _forward(module: nn.Linear, pays: Pays) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        y_NO = product(x.reshape(-1, x.shape[-1]), module.weight, module.bias, pays)
        return y_NO.view(*x.shape[:-1], -1)

    return forward
