"""Shared prefix: a prompt goes through the network once for all answers to it, and each answer sees it and itself.

Without it every answer goes through behind a prompt of its own. On a GPU the mask that keeps answers apart rules out
the fastest attention kernels; it pays there where prompts are long.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from onsa.accel.plan import Plan
from onsa.models.heads import Head

NAME = "shared-prefix"
LEAST = 0.05  # the share of tokens saved from which it pays


def refuse(plan: Plan) -> tuple[str, dict[str, Any]] | None:
    assert plan.anatomy is not None, "a pass over the network"
    if not plan.repeated:
        return "pass-shared-prefix-none", {}
    if plan.head is Head.ROWS:
        return "pass-shared-prefix-rows", {}
    if plan.cuts:
        return "pass-shared-prefix-kept", {}
    if plan.repeated < LEAST:
        return "pass-shared-prefix-short", {"share": f"{plan.repeated:.1%}"}
    if not plan.anatomy.shares:
        return "pass-shared-prefix-shaped", {}
    return None


def rewrite(plan: Plan) -> Plan:
    return replace(plan, layout="folded")


def figures(plan: Plan) -> dict[str, Any]:
    return {"share": f"{plan.repeated:.0%}"}
