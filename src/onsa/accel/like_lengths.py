"""Like lengths: a step's rows go through the network in blocks of like length, so that little padding is computed.

The rows of a step stay the same, and a loss is a sum, so the gradient changes in the order of its additions only. On a
CPU small blocks also stay in the cache; on a GPU the blocks are larger, since there many rows at once are what is fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from onsa.accel.plan import Plan

NAME = "like-lengths"
BLOCK_TOKENS = {"cpu": 1024, "cuda": 16384}


def refuse(plan: Plan) -> tuple[str, dict[str, Any]] | None:
    if len(set(plan.lengths)) <= 1:
        return "pass-like-lengths-even", {}
    return None


def rewrite(plan: Plan) -> Plan:
    return replace(plan, blocks="like-lengths")


def figures(plan: Plan) -> dict[str, Any]:
    return {"shortest": min(plan.lengths), "longest": max(plan.lengths), "tokens": BLOCK_TOKENS[plan.device]}


def blocks(lengths: Sequence[int], device: str, at_least: int) -> list[list[int]]:
    """Indices of rows in blocks of like length, each of at most ``BLOCK_TOKENS`` padded tokens (or one row).

    Args:
        at_least: the number of blocks that the recipe asked for (its ``accumulate``), as a limit to a block's rows.
    """
    limit = BLOCK_TOKENS[device]
    most_rows = -(-len(lengths) // at_least)
    found: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        block = found[-1] if found else None
        # Rows come longest first, so a block is as wide as its first row.
        if block is None or len(block) == most_rows or (len(block) + 1) * lengths[block[0]] > limit:
            found.append([index])
        else:
            block.append(index)
    return found
