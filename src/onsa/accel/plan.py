"""Plan: how a run's steps are computed, and which speed passes decided what.

A pass is a file with a ``NAME`` and three functions: ``refuse(plan)``, why it does not apply (or ``None``);
``rewrite(plan)``, the plan with the trick in it; and ``figures(plan)``, the numbers its message names. The plain plan
is right and slow; every pass keeps its result, up to the order of floating-point sums, and a test holds it to that.

Passes over rows decide as soon as the rows are known; passes over the network once it is loaded and adapted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any, Literal

from onsa.accel.anatomy import Anatomy
from onsa.models.attention import FUSED
from onsa.models.halves import Halves
from onsa.models.heads import Head
from onsa.models.lowering import Layout
from onsa.models.policy import Logits
from onsa.spec.messages import say
from onsa.spec.sections import Accel


@dataclass(frozen=True)
class Decision:
    """What one pass decided, and why: ``reason`` is a message code with its values."""

    name: str
    applied: bool
    reason: str
    values: dict[str, Any]

    @property
    def why(self) -> str:
        return say(self.reason, **self.values)


@dataclass(frozen=True)
class Plan:
    """The facts that passes look at, and the choices they make.

    head, device, optimizer: what is trained, where, and by what.
    lengths: of the training rows, in tokens; ``supervised_share`` is the share of their tokens that train.
    plain_head: the model's logits are its head's output and nothing more.
    epochs: how often each row is seen.
    tokens: of the rows that are trained on or watched; ``rows`` is their number.
    padding: the share of what goes through the network that is padding, as rows are divided into blocks.
    repeated: the share of tokens that prompts are which stand before more than one answer, but for the first time.
    live: rows are made on the way, so that nothing is known of them before.
    states, states_gb: the recipe's ``accel`` settings of those names.
    anatomy: facts of the network, once it is there.
    needed, free: bytes of memory that the run takes and that there are, once all else is decided.
    logits: where the vocabulary's logits are computed.
    blocks: how a step's rows are divided into what goes through the network at once.
    layout: whether these rows lie beside each other or behind each other, or answers behind one prompt.
    fused: use the optimizer's fused step.
    head_rows: predictions whose logits are there at once; ``None`` is all of a micro-batch.
    attention: the way to attend (:mod:`onsa.models.attention`), by name.
    products: how adapted linear layers are computed.
    halves: of their widths, which products are computed by half of their rows.
    kernels: names of modules whose work on each value is one loop.
    recompute: compute what blocks keep for the way back anew there, in place of keeping it.
    cuts: places in the network whose incoming states are kept on disk (:mod:`onsa.models.boundary`).
    """

    head: Head
    device: str
    optimizer: str
    lengths: tuple[int, ...]
    supervised_share: float
    plain_head: bool
    epochs: float = 1.0
    rows: int = 0
    tokens: int = 0
    padding: float = 0.0
    repeated: float = 0.0
    live: bool = False
    states: Literal["exact", "fp16"] = "exact"
    states_gb: float = 20.0
    anatomy: Anatomy | None = None
    needed: int = 0
    free: int = 0
    logits: Logits = "every-token"
    blocks: Literal["as-drawn", "like-lengths"] = "as-drawn"
    layout: Layout = "padded"
    fused: bool = False
    head_rows: int | None = None
    attention: str = FUSED
    products: Literal["modules", "one-operation"] = "modules"
    halves: Halves = field(default_factory=dict)
    kernels: tuple[str, ...] = ()
    recompute: bool = False
    cuts: tuple[int, ...] = ()
    decisions: tuple[Decision, ...] = ()


def decide(plan: Plan, accel: Accel, passes: Sequence[ModuleType]) -> Plan:
    """The plan after some passes have had their say, in their order."""
    for speed_pass in passes:
        name = speed_pass.NAME
        refusal: tuple[str, dict[str, Any]] | None
        if accel.mode == "off":
            refusal = ("pass-off", {})
        elif name in accel.skip:
            refusal = ("pass-skipped", {})
        else:
            refusal = speed_pass.refuse(plan)
        if refusal is None:
            plan = speed_pass.rewrite(plan)
        reason, values = refusal or (f"pass-{name}", speed_pass.figures(plan))
        plan = replace(plan, decisions=(*plan.decisions, Decision(name, refusal is None, reason, values)))
    return plan
