"""Supervised head: the vocabulary's logits are computed only where a token is to be predicted.

The head's product is the largest of a small language model; prompts and padding need none of it. On a GPU it saves the
memory of the logits as well.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from onsa.accel.plan import Plan
from onsa.models.heads import Head

NAME = "supervised-head"


def refuse(plan: Plan) -> tuple[str, dict[str, Any]] | None:
    if plan.head is not Head.TOKENS:
        return "pass-supervised-head-rows", {}
    if not plan.plain_head:
        return "pass-supervised-head-shaped", {}
    return None


def rewrite(plan: Plan) -> Plan:
    return replace(plan, logits="supervised")


def figures(plan: Plan) -> dict[str, Any]:
    return {"share": f"{plan.supervised_share:.0%}"}
