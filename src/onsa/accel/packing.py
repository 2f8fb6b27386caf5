"""Packing: rows of a step lie behind each other in lines, so that no padding is computed, and each attends to itself.

Which rows a step has stays the same; only what goes through the network together changes. On a CPU rows of like length
are padded where they are attended to, and only there; on a GPU (in half precision) all of them are one kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from heapq import heappop, heappush
from typing import Any

from onsa.accel.like_lengths import BLOCK_TOKENS
from onsa.accel.plan import Plan
from onsa.models.heads import Head
from onsa.models.lowering import BY_ENDS

NAME = "packing"
LEAST = 0.02  # the share of padding from which it pays
SLOWER = 1.5  # how much longer attention, a small part of the whole, may take for it


def refuse(plan: Plan) -> tuple[str, dict[str, Any]] | None:
    if plan.head is Head.ROWS:
        return "pass-supervised-head-rows", {}
    assert plan.anatomy is not None, "a pass over the network"
    if plan.cuts:
        return "pass-packing-kept", {}
    if plan.layout == "folded":
        return "pass-packing-folded", {}
    if plan.padding < LEAST:
        return "pass-packing-even", {"share": f"{plan.padding:.1%}"}
    times = plan.anatomy.attention
    lined = [times[way] for way in BY_ENDS if way in times]
    if not lined:
        return "pass-packing-shaped", {}
    beside = min(spent for way, spent in times.items() if way not in BY_ENDS)
    if min(lined) > SLOWER * beside:
        return "pass-packing-slow", {"times": f"{min(lined) / beside:.1f}"}
    return None


def rewrite(plan: Plan) -> Plan:
    assert plan.anatomy is not None
    times = plan.anatomy.attention
    way = min((way for way in BY_ENDS if way in times), key=lambda way: times[way])
    return replace(plan, layout="packed", attention=way)


def figures(plan: Plan) -> dict[str, Any]:
    return {"share": f"{plan.padding:.1%}", "tokens": BLOCK_TOKENS[plan.device]}


def lines(lengths: Sequence[int], device: str, at_least: int) -> list[list[int]]:
    """Indices of rows in lines of like many tokens, of at most ``BLOCK_TOKENS`` each (or one row).

    The longest row left goes to the line with the fewest tokens (Graham 1969, longest processing time first), of as few
    lines as could hold all of them; where it fits into none, to one more.

    Args:
        at_least: the number of lines that the recipe asked for (its ``accumulate``), as a limit to a line's rows.
    """
    most_rows, most_tokens = -(-len(lengths) // at_least), BLOCK_TOKENS[device]
    count = max(1, -(-sum(lengths) // most_tokens), -(-len(lengths) // most_rows))
    parts: list[list[int]] = [[] for _ in range(count)]
    loads = [(0, line) for line in range(count)]  # a heap of the lines that may take more rows
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if not loads or (loads[0][0] and loads[0][0] + lengths[index] > most_tokens):
            heappush(loads, (0, len(parts)))
            parts.append([])
        load, line = heappop(loads)
        parts[line].append(index)
        if len(parts[line]) < most_rows:
            heappush(loads, (load + lengths[index], line))
    return [part for part in parts if part]
