"""Adapted products: a linear layer and its low-rank update as one operation (:mod:`onsa.models.products`).

On a GPU it saves launches and the memory of intermediate results in the same way.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from onsa.accel.plan import Plan

NAME = "adapted-products"


def refuse(plan: Plan) -> tuple[str, dict[str, Any]] | None:
    assert plan.anatomy is not None, "a pass over the network"
    if not plan.anatomy.products:
        return "pass-adapted-products-none", {}
    if not plan.anatomy.plain_products:
        return "pass-adapted-products-shaped", {}
    return None


def rewrite(plan: Plan) -> Plan:
    assert plan.anatomy is not None
    return replace(plan, products="one-operation", halves=plan.anatomy.halves)


def figures(plan: Plan) -> dict[str, Any]:
    assert plan.anatomy is not None
    counts = {"plain": plan.anatomy.plain_products, "all": plan.anatomy.products}
    return {**counts, "halved": sum(plan.halves.values()), "widths": len(plan.halves)}
