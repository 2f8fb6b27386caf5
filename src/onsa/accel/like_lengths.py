"""Like lengths: a step's rows go through the network in blocks of like length, so that little padding is computed.

The rows of a step stay the same, and a loss is a sum, so the gradient changes in the order of its additions only. On a
CPU small blocks also stay in the cache; on a GPU the blocks are larger, since there many rows at once are what is fast.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from onsa.accel.plan import Plan

NAME = "like-lengths"
BLOCK_TOKENS = {"cpu": 1024, "cuda": 16384}  # padded tokens that go through at once
BLOCK_COST = {"cpu": 96, "cuda": 2048}  # what one more block costs, in tokens


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

    Of all ways to cut the rows, sorted by length, the one that computes the fewest padded tokens is taken, where each
    block costs ``BLOCK_COST`` tokens on top (dynamic programming over the place of the last cut).

    Args:
        at_least: the number of blocks that the recipe asked for (its ``accumulate``), as a limit to a block's rows.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    most_rows = -(-len(lengths) // at_least)
    cost = [0.0] + [math.inf] * len(order)  # cost[n]: of the first n rows, cut in the best way
    cut = [0] * (len(order) + 1)  # cut[n]: where the last block of that way begins
    for start, index in enumerate(order):
        width = lengths[index]  # rows come longest first, so a block is as wide as its first row
        rows = min(most_rows, max(1, BLOCK_TOKENS[device] // max(1, width)), len(order) - start)
        for end in range(start + 1, start + rows + 1):
            found = cost[start] + (end - start) * width + BLOCK_COST[device]
            if found < cost[end]:
                cost[end], cut[end] = found, start
    parts: list[list[int]] = []
    end = len(order)
    while end:
        parts.append(order[cut[end] : end])
        end = cut[end]
    return parts[::-1]
