"""Frozen boundary: what lies below all that trains is computed once a row and kept on disk.

How, :mod:`onsa.models.boundary` says. It pays where a row is seen more than once. On a GPU the states come from main
memory or the disk; the saving begins with bases whose lower part is deep.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from onsa.accel.plan import Plan
from onsa.models.boundary import POOLED

NAME = "frozen-boundary"
BYTES = {"exact": 4, "fp16": 2}


def refuse(plan: Plan) -> tuple[str, dict[str, Any]] | None:
    facts = plan.anatomy
    assert facts is not None, "a pass over the network"
    if not facts.cuts:
        return "pass-frozen-boundary-none", {}
    if facts.reads is None:
        return "pass-frozen-boundary-shaped", {}
    if plan.live:
        return "pass-frozen-boundary-live", {}
    if plan.epochs * saved(plan) <= cost(plan):
        return "pass-frozen-boundary-once", {"epochs": f"{plan.epochs:.1f}"}
    if needed(plan) > plan.states_gb * 1e9:
        return "pass-frozen-boundary-room", {"needed": f"{needed(plan) / 1e9:.2f}", "room": f"{plan.states_gb:g}"}
    return None


def rewrite(plan: Plan) -> Plan:
    assert plan.anatomy is not None
    return replace(plan, cuts=plan.anatomy.cuts)


def figures(plan: Plan) -> dict[str, Any]:
    assert plan.anatomy is not None
    share = saved(plan) / max(1, plan.anatomy.blocks)
    return {"blocks": plan.anatomy.blocks, "share": f"{share:.0%}", "megabytes": f"{needed(plan) / 1e6:,.0f}"}


def saved(plan: Plan) -> float:
    """Blocks that a row need not go through, on the mean over the run."""
    assert plan.anatomy is not None
    blocks = plan.anatomy.blocks
    return sum(share * min(cut - 1, blocks) for cut, share in plan.anatomy.stages if cut is not None)


def cost(plan: Plan) -> float:
    """Blocks that every row goes through once for it."""
    assert plan.anatomy is not None
    return float(min(max(plan.anatomy.cuts) - 1, plan.anatomy.blocks))


def needed(plan: Plan) -> int:
    """Bytes on disk."""
    facts = plan.anatomy
    assert facts is not None
    behind_base = facts.blocks + 2
    places = sum(plan.rows if cut == behind_base and facts.reads == POOLED else plan.tokens for cut in facts.cuts)
    return places * facts.width * BYTES[plan.states]
