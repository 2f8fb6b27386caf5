"""Fused optimizer: one pass over the memory of all values a step, in place of several."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from onsa.accel.plan import Plan

NAME = "fused-optimizer"
FUSED = frozenset({"adamw", "muon", "sgd"})  # muon: what AdamW moves in it


def refuse(plan: Plan) -> tuple[str, dict[str, Any]] | None:
    return None if plan.optimizer in FUSED else ("pass-fused-optimizer-none", {"optimizer": plan.optimizer})


def rewrite(plan: Plan) -> Plan:
    return replace(plan, fused=True)


def figures(plan: Plan) -> dict[str, Any]:
    return {"optimizer": plan.optimizer}
