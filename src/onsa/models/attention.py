"""Attention: other ways to compute what a network computes with its library's fused kernel.

``softmax(s · q kᵀ + mask) v`` (Vaswani et al. 2017, eq. 1), as two batched matrix products: heads that share keys and
values are one product, so these are not repeated. And without a mask, where tokens see only those before them and
padding comes last: what a row's own tokens see is then the same. And where rows are packed into one line, those of like
length beside each other, padded for this alone; on a GPU all rows are one kernel. Which way is fastest depends on
shapes and processor, so it is measured.

Shape legend: R rows, H heads, K heads of keys and values, G heads that share them (H = K · G), T queries, S keys,
N tokens of all rows in one line, D width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from onsa.models.lowering import BY_ENDS, base_network
from onsa.models.timing import remembered

FUSED = "sdpa"  # transformers' name of the library's own kernel
PRODUCTS, CAUSAL, CAUSAL_PRODUCTS = "onsa_products", "onsa_causal", "onsa_causal_products"
WAYS = (CAUSAL_PRODUCTS, CAUSAL, PRODUCTS)
WITHOUT_MASK = (CAUSAL_PRODUCTS, CAUSAL)
LINE, LINE_PRODUCTS = BY_ENDS
REPEATS = 5
ALIKE = 1.5  # how much longer than another a row may be that is attended to beside it
Attend = Callable[..., tuple[Tensor, None]]


@dataclass(frozen=True)
class Shape:
    """What is attended to at once: rows, tokens of each, and a network's heads."""

    rows: int
    tokens: int
    heads: int
    shared: int
    width: int


def products(
    module: Any,
    query_RHTD: Tensor,
    key_RKSD: Tensor,
    value_RKSD: Tensor,
    attention_mask: Tensor | None,
    **named: Any,
) -> tuple[Tensor, None]:
    """The function that transformers' networks call; returns ``mixed_RTHD``.

    Args:
        named: ``dropout`` of shares, ``scaling`` of scores and ``is_causal``, as transformers names them.
    """
    (rows, heads, tokens, width), shared = query_RHTD.shape, key_RKSD.shape[1]
    keys = key_RKSD.shape[2]
    dropout, scaling = named.get("dropout", 0.0), named.get("scaling")
    scale = width**-0.5 if scaling is None else scaling
    query = (query_RHTD * scale).reshape(rows, shared, -1, width)
    score_RHTS = (query @ key_RKSD.transpose(-1, -2)).view(rows, heads, tokens, keys)
    mask = attention_mask
    if mask is None and tokens > 1 and not _looks_ahead(module, named):
        mask = _causal(tokens, keys, score_RHTS.device)
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=score_RHTS.dtype).masked_fill_(~mask, torch.finfo(score_RHTS.dtype).min)
    if mask is not None:
        score_RHTS = score_RHTS + mask
    share_RHTS = functional.dropout(score_RHTS.softmax(-1), dropout, training=dropout > 0)
    mixed = share_RHTS.view(rows, shared, -1, keys) @ value_RKSD
    return mixed.view(rows, heads, tokens, width).transpose(1, 2), None


def in_line(attend: Attend) -> Attend:
    """A function as :func:`products`, for rows in one line, ``query_1HND``, where it is told their ends."""

    def along(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **named: Any
    ) -> tuple[Tensor, None]:
        end_R = named.get("cu_seq_lens_q")
        if end_R is None:
            return attend(module, query, key, value, attention_mask, **named)
        if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and not named.get("dropout"):
            return _in_one_kernel(module, query, key, value, named), None
        # Where tokens see only those before them, padding behind a row changes nothing of it.
        groups = _groups(end_R.diff().tolist(), 1.0 if _looks_ahead(module, named) else ALIKE)
        parts = zip(
            *(x.split_with_sizes([sum(group) for group in groups], 2) for x in (query, key, value)), strict=True
        )
        mixed = [_group(attend, module, group, part, named) for group, part in zip(groups, parts, strict=True)]
        return torch.cat(mixed, 1) if len(mixed) > 1 else mixed[0], None

    return along


def _looks_ahead(module: Any, named: Mapping[str, Any]) -> bool:
    return named.get("is_causal", getattr(module, "is_causal", False)) is False


def _groups(length_R: Sequence[int], alike: float) -> list[tuple[int, ...]]:
    """Lengths of rows that follow each other, in groups in which none is more than so much longer than another."""
    groups: list[list[int]] = []
    for length in length_R:
        if groups and max(length, *groups[-1]) <= alike * min(length, *groups[-1]):
            groups[-1].append(length)
        else:
            groups.append([length])
    return [tuple(group) for group in groups]


def _group(
    attend: Attend, module: Any, length_R: tuple[int, ...], part_1HND: tuple[Tensor, ...], named: Mapping[str, Any]
) -> Tensor:
    """Rows of a part of a line, attended to beside each other: ``mixed_1NHD``."""
    if len(length_R) == 1:
        return attend(module, *part_1HND, None, **named)[0]
    beside = (Beside.apply(x, *_places(length_R, x.shape[1], x.device)) for x in part_1HND)  # type: ignore[no-untyped-call]
    mixed_RTHD = attend(module, *beside, None, **named)[0]
    place_RHT, flat_HN = _places(length_R, mixed_RTHD.shape[2], mixed_RTHD.device)
    behind_1HND: Tensor = Behind.apply(mixed_RTHD.transpose(1, 2), place_RHT, flat_HN)  # type: ignore[no-untyped-call]
    return behind_1HND.transpose(1, 2)


@lru_cache(maxsize=64)
def _places(length_R: tuple[int, ...], heads: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where each place of rows beside each other lies in ``heads`` lines (padding: where its row ends), and back."""
    lengths, width, total = torch.tensor(length_R), max(length_R), sum(length_R)
    place_T, head_H = torch.arange(width), torch.arange(heads)
    place_RT = (lengths.cumsum(0) - lengths)[:, None] + place_T.minimum(lengths[:, None] - 1)
    place_RHT = head_H[:, None] * total + place_RT[:, None]
    row_N, inner_N = (place_T < lengths[:, None]).nonzero(as_tuple=True)
    flat_HN = (row_N * heads + head_H[:, None]) * width + inner_N
    return place_RHT.to(device), flat_HN.to(device)


class Beside(torch.autograd.Function):
    """Rows of a line ``x_1HND`` beside each other, ``x_RHTD``; nothing may come back from their padding."""

    @staticmethod
    def forward(ctx: Any, x_1HND: Tensor, place_RHT: Tensor, flat_HN: Tensor) -> Tensor:
        ctx.flat_HN = flat_HN
        return _picked(x_1HND, place_RHT)

    @staticmethod
    def backward(ctx: Any, dx_RHTD: Tensor) -> tuple[Tensor, None, None]:
        return _picked(dx_RHTD, ctx.flat_HN)[None], None, None


class Behind(torch.autograd.Function):
    """Rows beside each other, ``x_RHTD``, in a line again, ``x_1HND``, without their padding."""

    @staticmethod
    def forward(ctx: Any, x_RHTD: Tensor, place_RHT: Tensor, flat_HN: Tensor) -> Tensor:
        ctx.flat_HN, ctx.shape = flat_HN, x_RHTD.shape
        return _picked(x_RHTD, flat_HN)[None]

    @staticmethod
    def backward(ctx: Any, dx_1HND: Tensor) -> tuple[Tensor, None, None]:
        dx_RHTD = dx_1HND.new_zeros(ctx.shape)
        dx_RHTD.view(-1, ctx.shape[-1])[ctx.flat_HN.flatten()] = dx_1HND.reshape(-1, ctx.shape[-1])
        return dx_RHTD, None, None


def _picked(x: Tensor, place: Tensor) -> Tensor:
    """Vectors at some places of all vectors one after the other."""
    return x.reshape(-1, x.shape[-1]).index_select(0, place.flatten()).view(*place.shape, -1)


def _in_one_kernel(module: Any, query_1HND: Tensor, key: Tensor, value: Tensor, named: Mapping[str, Any]) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    query_NHD, key_NKD, value_NKD = (x[0].transpose(0, 1) for x in (query_1HND, key, value))
    ends, longest = named["cu_seq_lens_q"], named["max_length_q"]
    window = (-1, -1) if _looks_ahead(module, named) else (-1, 0)
    shared, scale = query_NHD.shape[1] != key_NKD.shape[1], named.get("scaling")
    given = (query_NHD, key_NKD, value_NKD, ends, ends, longest, longest)
    mixed_NHD = varlen_attn(*given, scale=scale, window_size=window, enable_gqa=shared)
    return cast(Tensor, mixed_NHD)[None]


@cache
def _causal(tokens: int, keys: int, device: torch.device) -> Tensor:
    """Which keys each of the last ``tokens`` of ``keys`` sees."""
    return torch.ones(tokens, keys, dtype=torch.bool, device=device).tril(keys - tokens)


def use(network: nn.Module, way: str) -> None:
    """Let a network attend in one of these ways.

    Raises:
        ValueError: it cannot.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    for name, function in (
        (PRODUCTS, products),
        (CAUSAL, sdpa_attention_forward),
        (CAUSAL_PRODUCTS, products),
        (LINE, in_line(sdpa_attention_forward)),
        (LINE_PRODUCTS, in_line(products)),
    ):
        AttentionInterface.register(name, function)
        AttentionMaskInterface.register(name, _no_mask if name in (CAUSAL, CAUSAL_PRODUCTS) else sdpa_mask)
    base_network(network).set_attn_implementation(way)


def _no_mask(*given: Any, **named: Any) -> None:
    return None


def used(network: nn.Module) -> str:
    """The way in which a network attends now, by transformers' name."""
    return str(base_network(network).config._attn_implementation)


def times(shape: Shape, device: str, dtype: torch.dtype) -> dict[str, float]:
    """Seconds of every way, forward and back."""
    ways = (FUSED, *WAYS, *BY_ENDS)
    return remembered(
        "attention", f"{shape} {device} {dtype}", ways, lambda way: _job(way, shape, device, dtype), REPEATS
    )


def _job(way: str, shape: Shape, device: str, dtype: torch.dtype) -> Callable[[], None]:
    """To attend once, forward and back."""
    rows, tokens = shape.rows, shape.tokens
    if way in BY_ENDS:  # every second row one token shorter: all of like length take less than they do in a run
        length_R = torch.tensor([max(1, tokens - row % 2) for row in range(rows)])
        rows, tokens = 1, int(length_R.sum())
    given = [
        torch.randn(rows, heads, tokens, shape.width, device=device, dtype=dtype, requires_grad=True)
        for heads in (shape.heads, shape.shared, shape.shared)
    ]
    mask, told = None, {}
    if way in (FUSED, PRODUCTS):
        mask = _causal(shape.tokens, shape.tokens, torch.device(device)).expand(shape.rows, 1, -1, -1)
    attend: Attend = products if way in (PRODUCTS, CAUSAL_PRODUCTS, LINE_PRODUCTS) else _fused
    if way in BY_ENDS:
        ends = functional.pad(length_R.cumsum(0), (1, 0)).to(device, torch.int32)
        attend, told = in_line(attend), {"cu_seq_lens_q": ends, "max_length_q": shape.tokens}

    def once() -> None:
        torch.autograd.backward(attend(None, *given, mask, is_causal=True, **told)[0].sum())
        if device == "cuda":
            torch.cuda.synchronize()

    return once


def _fused(
    module: None, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, **named: Any
) -> tuple[Tensor, None]:
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, 1) if groups > 1 else x for x in (k, v))
    mixed = functional.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal and mask is None)
    return mixed.transpose(1, 2), None
