"""Verify: a run's first step with the speed passes and without them, before it begins (``accel: verify``)."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from onsa.accel.passes import ROWS
from onsa.accel.plan import decide
from onsa.engine.batches import micro_batches
from onsa.objectives.base import Objective
from onsa.programs.forecast import build, work
from onsa.programs.prepare import Prepared
from onsa.sources.base import Cursor
from onsa.spec.errors import TrainingError

TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}  # of loss and gradient, relative, by the run's precision


@dataclass(frozen=True)
class First:
    """Loss and gradient of a first step, by the names of what trains, and the passes that acted."""

    loss: float
    gradient: dict[str, Tensor]
    passes: tuple[str, ...]


def verify(prepared: Prepared) -> None:
    """Hold the passes' first step against the plain one.

    Raises:
        TrainingError: loss or gradient differ by more than is tolerated.
    """
    fast, slow = (_first(_under(prepared, mode)) for mode in ("auto", "off"))
    tolerated = TOLERANCE[prepared.recipe.train.precision or "fp32"]
    loss = abs(fast.loss - slow.loss) / max(abs(slow.loss), 1e-12)
    gradient = _apart(fast.gradient, slow.gradient)
    if not max(loss, gradient) <= tolerated:
        raise TrainingError.of(
            "accel-differs",
            key="accel",
            passes=", ".join(fast.passes),
            loss=f"{loss:.1e}",
            gradient=f"{gradient:.1e}",
            tolerated=f"{tolerated:.0e}",
        )


def _under(prepared: Prepared, mode: str) -> Prepared:
    accel = prepared.recipe.accel.model_copy(update={"mode": mode})
    plain = replace(prepared.plan, blocks="as-drawn", logits="every-token", fused=False, decisions=())
    recipe = prepared.recipe.model_copy(update={"accel": accel})
    return replace(prepared, recipe=recipe, plan=decide(plain, accel, ROWS))


def _first(prepared: Prepared) -> First:
    built = build(prepared)
    plan = built.prepared.plan
    examples, _ = next(iter(prepared.source.steps(prepared.feed, Cursor())))
    batches = micro_batches(examples, plan, prepared.recipe.train.accumulate)
    # Without dropout, which falls on other places where rows are laid out otherwise.
    with closing(prepared.engine.open(work(built))) as session:
        loss, gradient = session.gradient(batches, cast(Objective, prepared.recipe.objective))
    return First(loss, gradient, tuple(d.name for d in plan.decisions if d.applied))


def _apart(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """The distance of two gradients, relative to the second's length."""
    if found.keys() != wanted.keys():
        return float("inf")
    square = sum(float((found[name] - value).double().square().sum()) for name, value in wanted.items())
    length = sum(float(value.double().square().sum()) for value in wanted.values())
    return float(torch.tensor(square / max(length, 1e-30)).sqrt())
