"""Halves: a product of many rows as two of half of them, where that is faster.

A library divides a product among threads by its shape, and for some shapes badly: of oneDNN's bf16 products on two
cores with AMX, those with 576 columns use but one core from 640 rows on, and two of half the rows use both. Which
shapes these are is measured.

Shape legend: N rows, I width of the input, O of the output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from onsa.models.timing import remembered

LEAST = 640  # rows
TIMED = (704, 1024)  # rows for which both are measured
REPEATS = 40
GAIN = 1.1  # from which on it pays
Halves = Mapping[tuple[int, int], bool]  # of widths I and O: whether halves are faster
NONE: Halves = {}


def measured(shapes: Iterable[tuple[int, int]], dtype: torch.dtype) -> Halves:
    """Whether halves are faster on the CPU, for products of these widths."""
    return {shape: _pay(shape, dtype) for shape in sorted(set(shapes))}


def _pay(shape: tuple[int, int], dtype: torch.dtype) -> bool:
    of = "{} {} {}".format(*shape, dtype)
    spent = remembered("halves", of, ("whole", "halves"), lambda way: _job(way, *shape, dtype), REPEATS)
    return spent["whole"] >= GAIN * spent["halves"]


def _job(way: str, inner: int, outer: int, dtype: torch.dtype) -> Callable[[], None]:
    halves = {(inner, outer): way == "halves"}
    given = [torch.randn(rows, inner, dtype=dtype) for rows in TIMED]
    w_IO = torch.randn(inner, outer, dtype=dtype)

    def once() -> None:
        for x_NI in given:
            product(x_NI, w_IO, halves)

    return once


def product(x_NI: Tensor, w_IO: Tensor, halves: Halves, bias_O: Tensor | None = None) -> Tensor:
    """``x w + b``."""
    if bias_O is not None or not _halved(x_NI, w_IO, halves):
        return functional.linear(x_NI, w_IO.T, bias_O)
    y_NO = x_NI.new_empty(len(x_NI), w_IO.shape[1])
    for x, y in zip(_parts(x_NI), _parts(y_NO), strict=True):
        torch.mm(x, w_IO, out=y)
    return y_NO


def add_product(to_NO: Tensor, x_NI: Tensor, w_IO: Tensor, halves: Halves) -> None:
    """Add ``x w`` in place."""
    halved = _halved(x_NI, w_IO, halves)
    for x, to in zip(_parts(x_NI), _parts(to_NO), strict=True) if halved else [(x_NI, to_NO)]:
        to.addmm_(x, w_IO)


def _halved(x_NI: Tensor, w_IO: Tensor, halves: Halves) -> bool:
    return len(x_NI) >= LEAST and halves.get((w_IO.shape[0], w_IO.shape[1]), False)


def _parts(x: Tensor) -> tuple[Tensor, Tensor]:
    half = len(x) // 2
    return x[:half], x[half:]
