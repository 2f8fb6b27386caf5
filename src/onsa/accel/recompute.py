"""Recompute: what a block keeps for the way back is computed anew there (gradient checkpointing; Chen et al. 2016).

It costs another pass forward, so it is taken only where the run would not fit into memory otherwise.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from onsa.accel.plan import Plan

NAME = "recompute"
SHARE = 0.9  # of what is free that a run may take before it is short


def refuse(plan: Plan) -> tuple[str, dict[str, Any]] | None:
    assert plan.anatomy is not None, "a pass over the network"
    if plan.needed <= SHARE * plan.free:
        return "pass-recompute-fits", {"needed": f"{plan.needed / 1e9:.1f}", "free": f"{plan.free / 1e9:.1f}"}
    return None if plan.anatomy.recomputes else ("pass-recompute-shaped", {})


def rewrite(plan: Plan) -> Plan:
    return replace(plan, recompute=True)


def figures(plan: Plan) -> dict[str, Any]:
    return {"needed": f"{plan.needed / 1e9:.1f}", "free": f"{plan.free / 1e9:.1f}"}
