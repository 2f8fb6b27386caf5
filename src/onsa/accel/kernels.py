"""Kernels: what a block does to each value in one go through memory (:mod:`onsa.models.kernels`).

They are loops for a CPU. On a GPU blocks are computed as their network does it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from onsa.accel.plan import Plan

NAME = "kernels"


def refuse(plan: Plan) -> tuple[str, dict[str, Any]] | None:
    assert plan.anatomy is not None, "a pass over the network"
    if plan.device != "cpu":
        return "pass-kernels-device", {}
    return None if plan.anatomy.kernels else ("pass-kernels-none", {})


def rewrite(plan: Plan) -> Plan:
    assert plan.anatomy is not None
    return replace(plan, kernels=plan.anatomy.kernels)


def figures(plan: Plan) -> dict[str, Any]:
    return {"modules": len(plan.kernels)}
