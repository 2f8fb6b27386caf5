"""Local: steps in this process, on the CPU or one GPU."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor

from onsa.engine.batches import evaluation_batches
from onsa.engine.sessions.base import Engine, Moved, Session, Work
from onsa.models.batch import Batch, Example
from onsa.models.load import hold_in
from onsa.models.policy import Models, Policy
from onsa.objectives.base import LossOf, Objective
from onsa.regularisers.base import Regulariser
from onsa.spec.errors import MachineError, TrainingError
from onsa.tasks.base import Outcome, Task

WEIGHTS = "trainable.safetensors"
MOMENTS = "optimizer.safetensors"
GROUPS = "optimizer.json"
DEPLOYED = "deployed.safetensors"


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
        for regulariser in work.regularisers:
            regulariser.attach(work.network)
        self.work = work
        self.models = Models(Policy(work.network, work.pad_id, device, work.precision, work.plan.logits))
        work.adaptation.train_mode(work.network)
        for regulariser in work.regularisers:
            regulariser.check(self.models.policy, work.new)
        groups = work.optimizer.groups(work.network, work.new, work.adaptation.staged)
        self.optimizer = work.optimizer.build(groups, work.plan.fused)
        self.trainable = {name: p for name, p in work.network.named_parameters() if p.requires_grad}
        pulled = any(kind.copies and kind.share(0, 1) is None for kind in work.regularisers)
        self.start = {name: p.detach().clone() for name, p in self.trainable.items()} if pulled else {}
        self.average = Average(self.trainable, work.regularisers)
        self.steps = 0
        self.seen: list[float] = []
        self._weight = 0.0

    def forward_backward(self, batches: Sequence[Batch], objective: Objective) -> dict[str, float]:
        work = self.work
        torch.manual_seed(_mixed(work.seed, self.steps))
        work.adaptation.before_step(work.network, self.steps, work.total)
        work.adaptation.train_mode(work.network)
        asked: LossOf = objective
        for regulariser in work.regularisers:
            asked = regulariser.around(asked)
        sums: dict[str, float] = {"loss": 0.0}
        for batch in batches:
            loss = asked(self.models, batch)
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

    def step(self) -> Moved:
        work = self.work
        metrics = self._penalised()
        gradients = [p.grad for p in self.trainable.values() if p.grad is not None]
        torch._foreach_div_(gradients, self._weight)
        norm = torch.nn.utils.get_total_norm(gradients)
        if not torch.isfinite(norm):
            raise TrainingError.of("gradient-not-finite", step=self.steps + 1, norm=float(norm))
        if work.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(list(self.trainable.values()), work.clip, norm)
        factor = work.schedule.factor(self.steps, work.total, self.seen)
        rates: dict[str, float] = {}
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
            trains = any(p.grad is not None for p in group["params"])
            rates[group["label"]] = max(rates.get(group["label"], 0.0), group["lr"] if trains else 0.0)
        self.optimizer.step()
        work.adaptation.after_step(work.network, self.steps, work.total)
        self.average.update(self.trainable, self.steps, work.total)
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        self._weight = 0.0
        return Moved((work.optimizer.lr or 0.0) * factor, rates, float(norm), metrics)

    def observe(self, value: float) -> None:
        self.seen.append(value)

    @torch.inference_mode()
    def evaluate(self, examples: Sequence[Example], task: Task) -> Outcome:
        self.work.network.eval()
        batches = evaluation_batches(examples, self.work.plan)
        deployed = self._deployed()
        kept = {name: self.trainable[name].data for name in deployed}
        self._put(deployed)
        try:
            return Outcome.join([task.outcome(self.models.policy, batch) for batch in batches])
        finally:
            self._put(kept)

    def save(self, to: Path) -> None:
        state = self.optimizer.state_dict()
        moments, numbers = _flat(state["state"])
        moments |= {f"average.{name}": value for name, value in self.average.values.items()}
        moments |= {f"adaptation.{name}": t for name, t in self.work.adaptation.state(self.work.network).items()}
        save_file(_plain(self.trainable), to / WEIGHTS)
        save_file(_plain(moments), to / MOMENTS)
        deployed = self._deployed()
        if deployed:
            save_file(_plain(deployed), to / DEPLOYED)
        document = {"steps": self.steps, "seen": self.seen, "groups": state["param_groups"], "numbers": numbers}
        (to / GROUPS).write_text(json.dumps(document))

    def restore(self, at: Path, optimizer: bool = True) -> None:
        values = load_file(at / WEIGHTS)
        if not optimizer and (at / DEPLOYED).exists():
            values |= load_file(at / DEPLOYED)
        with torch.no_grad():
            for name, value in values.items():
                self.trainable[name].copy_(value)
        document = json.loads((at / GROUPS).read_text())
        self.steps, self.seen = document["steps"], document["seen"]
        if optimizer:
            moments = load_file(at / MOMENTS)
            self.average.values = _taken(moments, "average.", self.models.policy.device)
            self.work.adaptation.restore(self.work.network, _taken(moments, "adaptation."))
            state: dict[int, dict[str, Any]] = {}
            for key, value in (moments | document["numbers"]).items():
                index, name = key.split(".", 1)
                state.setdefault(int(index), {})[name] = value
            self.optimizer.load_state_dict({"state": state, "param_groups": document["groups"]})
        else:  # these weights are what was deployed; no later average may stand in for them
            self.average = Average({}, ())
            self.optimizer.state.clear()

    def _penalised(self) -> dict[str, float]:
        """Add the gradients of what is minimised on top of the mean loss; returns its value, where there is any."""
        work, zero = self.work, torch.zeros((), device=self.models.policy.device)
        penalties = [work.adaptation.penalty(work.network)]
        penalties += [r.penalty(self.trainable, self.start, work.new) for r in work.regularisers]
        total = sum((penalty for penalty in penalties if penalty is not None), zero)
        if not total.requires_grad:
            return {}
        (total * self._weight).backward()  # type: ignore[no-untyped-call]  # the gradient is divided by the weight as a whole
        return {"penalty": float(total.detach())}

    def _deployed(self) -> dict[str, Tensor]:
        """The weights to measure and to save, where they are not those that train."""
        ahead = self.work.optimizer.deployed(self.optimizer)
        found = {name: ahead[p] for name, p in self.trainable.items() if p in ahead}
        return found | self.average.values

    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.trainable[name].data = value


class Average:
    """A running average of the weights, as regularisers weigh it; empty where none of them keeps one."""

    def __init__(self, trainable: Mapping[str, Tensor], regularisers: Sequence[Regulariser]) -> None:
        self.kinds = [regulariser for regulariser in regularisers if regulariser.share(0, 1) is not None]
        self.values = {name: p.detach().clone() for name, p in trainable.items()} if self.kinds else {}

    @torch.no_grad()
    def update(self, trainable: Mapping[str, Tensor], step: int, total: int) -> None:
        for kind in self.kinds:
            share = kind.share(step, total)
            if share:
                torch._foreach_lerp_(list(self.values.values()), [trainable[name] for name in self.values], share)


def _flat(state: Mapping[int, Mapping[str, Any]]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as named tensors and named numbers."""
    named = {f"{index}.{name}": value for index, values in state.items() for name, value in values.items()}
    tensors = {key: value for key, value in named.items() if isinstance(value, Tensor)}
    return tensors, {key: value for key, value in named.items() if key not in tensors}


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def _taken(tensors: dict[str, Tensor], prefix: str, device: torch.device | None = None) -> dict[str, Tensor]:
    """The tensors under a prefix, taken out of a mapping."""
    return {name[len(prefix) :]: tensors.pop(name).to(device) for name in list(tensors) if name.startswith(prefix)}


def _mixed(seed: int, step: int) -> int:
    """One seed for each step of each run (the finaliser of SplitMix64; Steele et al. 2014)."""
    value = (seed * 0x9E3779B97F4A7C15 + step + 1) & (2**64 - 1)
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return (value ^ (value >> 31)) & (2**63 - 1)
