"""Chunked head: the vocabulary's logits are there for a part of the predictions at a time.

How, :mod:`onsa.models.vocabulary` says. Exact in value and gradient; it saves memory, and
passes over it, on a CPU and on a GPU alike.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from onsa.accel.plan import Plan
from onsa.models.heads import Head
from onsa.models.vocabulary import chunk_rows

NAME = "chunked-head"


def refuse(plan: Plan) -> tuple[str, dict[str, Any]] | None:
    assert plan.anatomy is not None, "a pass over the network"
    if plan.head is not Head.TOKENS:
        return "pass-supervised-head-rows", {}
    if plan.logits != "supervised":
        return "pass-chunked-head-every", {}
    return None if plan.anatomy.vocabulary else ("pass-chunked-head-shaped", {})


def rewrite(plan: Plan) -> Plan:
    assert plan.anatomy is not None
    return replace(plan, head_rows=chunk_rows(plan.anatomy.vocabulary, plan.device))


def figures(plan: Plan) -> dict[str, Any]:
    assert plan.anatomy is not None
    return {"rows": plan.head_rows, "vocabulary": f"{plan.anatomy.vocabulary:,}"}
