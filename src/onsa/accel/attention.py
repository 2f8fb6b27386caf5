"""Attention: the way that takes the least time for this run's rows on this machine (:mod:`onsa.models.attention`)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from onsa.accel.plan import Plan
from onsa.models.attention import FUSED, WITHOUT_MASK
from onsa.models.lowering import BY_ENDS

NAME = "attention"
CLEARLY = 0.95  # another way must take at most this share of the time


def refuse(plan: Plan) -> tuple[str, dict[str, Any]] | None:
    if plan.layout == "packed":
        return "pass-attention-packed", {}
    times = _times(plan)
    if len(times) < 2:
        return "pass-attention-shaped", {}
    if min(times.values()) > CLEARLY * times[FUSED]:
        return "pass-attention-fused", {}
    return None


def rewrite(plan: Plan) -> Plan:
    times = _times(plan)
    return replace(plan, attention=min(times, key=lambda way: times[way]))


def figures(plan: Plan) -> dict[str, Any]:
    times = _times(plan)
    return {"way": plan.attention.removeprefix("onsa_"), "share": f"{times[plan.attention] / times[FUSED]:.0%}"}


def _times(plan: Plan) -> dict[str, float]:
    """Seconds of the ways for rows beside each other; those that go without a mask know of no answers in a row."""
    assert plan.anatomy is not None, "a pass over the network"
    unfit = (*BY_ENDS, *WITHOUT_MASK) if plan.layout == "folded" else BY_ENDS
    return {way: spent for way, spent in plan.anatomy.attention.items() if way not in unfit}
