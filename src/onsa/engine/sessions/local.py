"""Local: steps in this process, on the CPU or one GPU."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor

from onsa.engine.batches import evaluation_batches
from onsa.engine.sessions.base import Engine, Session, Work
from onsa.models.batch import Batch, Example
from onsa.models.load import hold_in
from onsa.models.policy import Models, Policy
from onsa.objectives.base import Objective
from onsa.spec.errors import MachineError, TrainingError
from onsa.tasks.base import Outcome, Task

WEIGHTS = "trainable.safetensors"
MOMENTS = "optimizer.safetensors"
GROUPS = "optimizer.json"


class Local(Engine):
    """One process on this machine.

    device: ``cpu`` or ``cuda``; the GPU where there is one, if not given.
    threads: CPU threads; all cores if not given. The same number gives the same bytes.
    """

    kind: ClassVar[str] = "local"
    device: Literal["cpu", "cuda"] | None = None
    threads: Annotated[int, Field(ge=1)] | None = None

    def place(self) -> str:
        if self.device == "cuda" and not torch.cuda.is_available():
            raise MachineError.of("no-gpu", key="engine.device")
        return self.device or ("cuda" if torch.cuda.is_available() else "cpu")

    def open(self, work: Work) -> Session:
        if self.threads:
            torch.set_num_threads(self.threads)
        return LocalSession(work, torch.device(self.place()))


class LocalSession(Session):
    """A network, its optimizer and its place in the schedule."""

    def __init__(self, work: Work, device: torch.device) -> None:
        hold_in(work.network, work.precision, device)
        self.work = work
        self.models = Models(Policy(work.network, work.pad_id, device, work.precision, work.plan.logits))
        self.optimizer = work.optimizer.build(work.network, work.new, work.plan.fused)
        self.trainable = {name: p for name, p in work.network.named_parameters() if p.requires_grad}
        self.steps = 0
        self._weight = 0.0

    def forward_backward(self, batches: Sequence[Batch], objective: Objective) -> dict[str, float]:
        torch.manual_seed(_mixed(self.work.seed, self.steps))
        self.work.network.train()
        sums: dict[str, float] = {"loss": 0.0}
        for batch in batches:
            loss = objective(self.models, batch)
            value = float(loss.total.detach())
            if not math.isfinite(value):
                raise TrainingError.of(
                    "loss-not-finite", step=self.steps + 1, loss=value, rows=", ".join(map(str, batch.row_R))
                )
            loss.total.backward()  # type: ignore[no-untyped-call]
            self._weight += float(loss.weight)
            sums["loss"] += value
            for name, figure in loss.metrics.items():
                sums[name] = sums.get(name, 0.0) + float(figure)
        return {name: figure / self._weight for name, figure in sums.items()}

    def step(self) -> dict[str, float]:
        gradients = [p.grad for p in self.trainable.values() if p.grad is not None]
        torch._foreach_div_(gradients, self._weight)
        norm = torch.nn.utils.get_total_norm(gradients)
        if not torch.isfinite(norm):
            raise TrainingError.of("gradient-not-finite", step=self.steps + 1, norm=float(norm))
        if self.work.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(list(self.trainable.values()), self.work.clip, norm)
        factor = self.work.schedule.factor(self.steps, self.work.total)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        self._weight = 0.0
        return {"lr": self.optimizer.param_groups[0]["lr"], "grad_norm": float(norm)}

    @torch.inference_mode()
    def evaluate(self, examples: Sequence[Example], task: Task) -> Outcome:
        self.work.network.eval()
        batches = evaluation_batches(examples, self.work.plan)
        return Outcome.join([task.outcome(self.models.policy, batch) for batch in batches])

    def save(self, to: Path) -> None:
        save_file({name: p.detach().cpu().contiguous() for name, p in self.trainable.items()}, to / WEIGHTS)
        state = self.optimizer.state_dict()
        moments: dict[str, Tensor] = {}
        numbers: dict[str, Any] = {}
        for index, values in state["state"].items():
            for name, value in values.items():
                key = f"{index}.{name}"
                if isinstance(value, Tensor):
                    moments[key] = value.detach().cpu().contiguous()
                else:
                    numbers[key] = value
        save_file(moments, to / MOMENTS)
        document = {"steps": self.steps, "groups": state["param_groups"], "numbers": numbers}
        (to / GROUPS).write_text(json.dumps(document))

    def restore(self, at: Path, optimizer: bool = True) -> None:
        with torch.no_grad():
            for name, value in load_file(at / WEIGHTS).items():
                self.trainable[name].copy_(value)
        document = json.loads((at / GROUPS).read_text())
        self.steps = document["steps"]
        if optimizer:
            state: dict[int, dict[str, Any]] = {}
            for key, value in (load_file(at / MOMENTS) | document["numbers"]).items():
                index, name = key.split(".", 1)
                state.setdefault(int(index), {})[name] = value
            self.optimizer.load_state_dict({"state": state, "param_groups": document["groups"]})


def _mixed(seed: int, step: int) -> int:
    """One seed for each step of each run (the finaliser of SplitMix64; Steele et al. 2014)."""
    value = (seed * 0x9E3779B97F4A7C15 + step + 1) & (2**64 - 1)
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return (value ^ (value >> 31)) & (2**63 - 1)
