"""Packing: rows of a step lie behind each other in lines, so that no padding is computed, and each attends to itself.

Which rows a step has stays the same; only what goes through the network together changes. On a CPU a row's attention is
a call of its own, on a GPU (in half precision) all of them are one kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
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
    """Indices of rows in lines of like many tokens, as few as hold ``BLOCK_TOKENS`` each (or one row).

    The longest row left goes to the line with the fewest tokens (Graham 1969, longest processing time first).

    Args:
        at_least: the number of lines that the recipe asked for (its ``accumulate``), as a limit to a line's rows.
    """
    most_rows, most_tokens = -(-len(lengths) // at_least), BLOCK_TOKENS[device]
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    count = max(1, -(-sum(lengths) // most_tokens), -(-len(lengths) // most_rows))
    while True:
        parts: list[list[int]] = [[] for _ in range(count)]
        loads = [0] * count
        for index in order:
            open_ = [line for line in range(count) if len(parts[line]) < most_rows]
            line = min(open_, key=lambda line: loads[line])
            parts[line].append(index)
            loads[line] += lengths[index]
        if all(len(part) <= 1 or load <= most_tokens for part, load in zip(parts, loads, strict=True)):
            return [part for part in parts if part]
        count += 1
