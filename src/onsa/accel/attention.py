"""Attention: the way that takes the least time for this run's rows on this machine (:mod:`onsa.models.attention`)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from onsa.accel.plan import Plan
from onsa.models.attention import FUSED

NAME = "attention"
CLEARLY = 0.95  # another way must take at most this share of the time


def refuse(plan: Plan) -> tuple[str, dict[str, Any]] | None:
    assert plan.anatomy is not None, "a pass over the network"
    times = plan.anatomy.attention
    if len(times) < 2:
        return "pass-attention-shaped", {}
    if min(times.values()) > CLEARLY * times[FUSED]:
        return "pass-attention-fused", {}
    return None


def rewrite(plan: Plan) -> Plan:
    assert plan.anatomy is not None
    times = plan.anatomy.attention
    return replace(plan, attention=min(times, key=lambda way: times[way]))


def figures(plan: Plan) -> dict[str, Any]:
    assert plan.anatomy is not None
    times = plan.anatomy.attention
    return {"way": plan.attention.removeprefix("onsa_"), "share": f"{times[plan.attention] / times[FUSED]:.0%}"}
