"""Local: steps in this process, on the CPU or one GPU."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor

from onsa.engine.among import Alone, Among, Sums
from onsa.engine.average import Average
from onsa.engine.batches import evaluation_batches
from onsa.engine.kept import boundary, reference
from onsa.engine.returning import Returning, keep
from onsa.engine.sessions.base import Engine, Moved, Session, Work
from onsa.engine.tensors import flat, plain, taken
from onsa.models import kernels
from onsa.models.attention import FUSED, use
from onsa.models.batch import Batch, Example
from onsa.models.load import quiet
from onsa.models.lowering import base_network
from onsa.models.policy import Models, Policy
from onsa.models.products import fuse
from onsa.models.reference import Live
from onsa.models.strata import Strata
from onsa.objectives.base import LossOf, Objective, Role
from onsa.spec.errors import MachineError, TrainingError
from onsa.tasks.base import Examiner, Outcome

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
        return LocalSession(work, torch.device(self.place()), Alone())


class LocalSession(Session):
    """A network, its optimizer and its place in the schedule."""

    def __init__(self, work: Work, device: torch.device, among: Among) -> None:
        among.settle(work.network, work.precision, device)
        for regulariser in work.regularisers:
            regulariser.attach(work.network)
        self.work, self.among = work, among
        plan = work.plan
        if plan.attention != FUSED:
            use(work.network, plan.attention)
        if plan.recompute:
            with quiet():
                base_network(work.network).gradient_checkpointing_enable({"use_reentrant": False})
        policy = Policy(
            network=work.network,
            pad_id=work.pad_id,
            device=device,
            precision=work.precision,
            logits=plan.logits,
            layout=plan.layout,
            head_rows=plan.head_rows,
            temperature=work.temperature,
        )
        self.strata = Strata.of(work.network)
        self.models = Models(policy)
        if plan.products == "one-operation":
            fuse(work.network, plan.halves)
        kernels.use(work.network, plan.kernels)
        self._train_mode()
        for regulariser in work.regularisers:
            regulariser.check(self.models.policy, work.new)
        self.trainable = among.moved(work.network)
        moved = {p: self.trainable[name] for name, p in work.network.named_parameters() if p.requires_grad}
        groups = work.optimizer.groups(work.network, work.new, work.adaptation.staged)
        groups = [{**group, "params": [moved[p] for p in group["params"]]} for group in groups]
        self.optimizer = work.optimizer.build(groups, work.plan.fused)
        pulled = any(kind.copies and kind.share(0, 1) is None for kind in work.regularisers)
        asked = work.live and Role.REFERENCE in work.uses and work.adaptation.base(work.network) is None
        self.start = {name: p.detach().clone() for name, p in self.trainable.items()} if pulled or asked else {}
        self.average = Average(self.trainable, work.regularisers)
        names = {p: name for name, p in self.trainable.items()}
        self._order = [names[p] for group in self.optimizer.param_groups for p in group["params"]]
        self.steps = 0
        self.seen: list[float] = []
        self.rows: int | None = None  # of a micro-batch at most, once memory has run out
        self._weight = 0.0
        keep()
        self._returning = Returning()

    @property
    def begun(self) -> bool:
        """Whether there is what is kept of the rows: states below the boundary, and a reference's answers."""
        bounded = not self.work.plan.cuts or self.models.policy.boundary is not None
        return bounded and self._referred

    @property
    def _referred(self) -> bool:
        return Role.REFERENCE not in self.work.uses or self.models.reference is not None

    def begin(self) -> None:
        """Have what is kept of the rows; the first step pays for it."""
        self._refer()
        policy = self.models.policy
        if not self.begun:
            bounded = replace(policy, boundary=boundary(policy, self.strata, self.work, self.among))
            self.models = replace(self.models, policy=bounded)

    def _refer(self) -> None:
        """Have the reference, while the network still is what it began as."""
        if self._referred:
            return
        policy, work = self.models.policy, self.work
        found = Live(policy.logprobs, self._back) if work.live else reference(policy, work, self.among)
        self.models = replace(self.models, reference=found)

    @contextmanager
    def _back(self) -> Iterator[None]:
        """Within, the network is what it began as; there is no graph."""
        bare = self.work.adaptation.base(self.work.network)
        if bare is not None:
            with bare:
                yield
            return
        now = {name: p.detach().clone() for name, p in self.trainable.items()}
        self._put(self.start)
        try:
            yield
        finally:
            self._put(now)

    def forward_backward(self, batches: Sequence[Batch], objective: Objective) -> dict[str, float]:
        work = self.work
        self.begin()
        work.adaptation.before_step(work.network, self.steps, work.total)
        self._train_mode()
        asked = self._foreseen(batches, objective)
        for regulariser in work.regularisers:
            asked = regulariser.around(asked)
        sums = self.among.together(lambda: self._fitted(batches, asked), self.trainable)
        self._weight += sums.weight
        return {name: figure / self._weight for name, figure in sums.figures.items()}

    def _fitted(self, batches: Sequence[Batch], asked: LossOf) -> Sums:
        """The sums of a step, in parts that fit into memory."""
        while True:
            # The first process draws as one alone would, the others elsewhere: dropout is not the same for their rows.
            torch.manual_seed(_mixed(self.work.seed + (self.among.rank << 32), self.steps))
            try:
                return self._summed(_at_most(batches, self.rows), asked)
            except RuntimeError as error:
                if not _out_of_memory(error):
                    raise
                if self.among.lockstep:
                    raise MachineError.of("memory-out-shared", key="train.accumulate", step=self.steps + 1) from None
                most = max(len(batch.length_R) for batch in _at_most(batches, self.rows))
                if most == 1:
                    longest = max(max(batch.length_R) for batch in batches)
                    raise MachineError.of("memory-out", key="train", step=self.steps + 1, longest=longest) from None
            # The step begins anew in smaller parts; a loss is a sum, so it stays the same step.
            self.rows = (most + 1) // 2
            self._forget()
            if self.models.policy.device.type == "cuda":
                torch.cuda.empty_cache()

    def gradient(self, batches: Sequence[Batch], objective: Objective) -> tuple[float, dict[str, Tensor]]:
        work = self.work
        self.begin()
        work.adaptation.before_step(work.network, self.steps, work.total)
        work.network.eval()
        asked = self._foreseen(batches, objective)
        sums = self.among.together(lambda: self._summed(batches, asked), self.trainable)
        found = {
            name: self.among.whole(p.grad / sums.weight, name)
            for name, p in self.trainable.items()
            if p.grad is not None
        }
        self._forget()
        return sums.figures["loss"] / sums.weight, found

    def _foreseen(self, batches: Sequence[Batch], objective: LossOf) -> LossOf:
        """An objective that knows what it has to know of a whole step."""
        if not isinstance(objective, Objective) or type(objective).foresee is Objective.foresee:
            return objective

        def known() -> Sums:
            sums = Sums()
            for batch in batches:
                found = objective.foresee(self.models, batch)
                assert found is not None, "what an objective foresees once, it always does"
                sums.add(float(found[1]), {"loss": float(found[0])})
            return sums

        with torch.no_grad():
            told = self.among.together(known, {})
        return objective.knowing(told.figures["loss"] / max(told.weight, 1.0))

    def _summed(self, batches: Sequence[Batch], asked: LossOf) -> Sums:
        """Add up the gradients of some batches, their weight, and what they tell."""
        sums, fault = Sums(), None
        for batch in batches:
            loss = asked(self.models, batch)
            value = float(loss.total.detach())
            if not math.isfinite(value) and fault is None:  # told in the end, when no other process waits for this one
                rows = ", ".join(map(str, batch.row_R))
                fault = TrainingError.of("loss-not-finite", step=self.steps + 1, loss=value, rows=rows)
            loss.total.backward()  # type: ignore[no-untyped-call]
            told = {name: float(figure) for name, figure in loss.metrics.items()}
            sums.add(float(loss.weight), {"loss": value, **told})
        if fault is not None:
            raise fault
        return sums

    def step(self) -> Moved:
        work = self.work
        metrics = self._penalised()
        gradients = {name: p.grad for name, p in self.trainable.items() if p.grad is not None}
        torch._foreach_div_(list(gradients.values()), self._weight)
        norm = self.among.norm(gradients)
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
        self._forget()
        self._returning()
        self.steps += 1
        return Moved((work.optimizer.lr or 0.0) * factor, rates, float(norm), metrics)

    def observe(self, value: float) -> None:
        self.seen.append(value)

    def evaluate(self, examples: Sequence[Example], examiner: Examiner) -> Outcome:
        return Outcome.join(self.outcomes(evaluation_batches(examples, self.work.plan), examiner))

    @torch.no_grad()  # what a network that is held in parts lays together first in inference mode could never train
    def outcomes(self, batches: Sequence[Batch], examiner: Examiner) -> list[Outcome]:
        """What the model makes of some batches now, one by one."""
        self.work.network.eval()
        deployed = self._deployed()
        kept = {name: self.trainable[name].detach().clone() for name in deployed}
        self._put(deployed)
        try:
            return [examiner.outcome(self.models.policy, batch) for batch in batches]
        finally:
            self._put(kept)

    def save(self, to: Path) -> None:
        state, whole = self.optimizer.state_dict(), self.among.whole
        moments, numbers = flat(state["state"])
        moments = {key: whole(value, self._moved(key)) for key, value in moments.items()}
        moments |= {f"average.{name}": whole(value, name) for name, value in self.average.values.items()}
        moments |= {f"adaptation.{name}": t for name, t in self.work.adaptation.state(self.work.network).items()}
        weights = self.values()
        deployed = {name: whole(value, name) for name, value in self._deployed().items()}
        if self.among.rank > 0:  # it was asked for its parts
            return
        save_file(plain(weights), to / WEIGHTS)
        save_file(plain(moments), to / MOMENTS)
        if deployed:
            save_file(plain(deployed), to / DEPLOYED)
        document = {"steps": self.steps, "seen": self.seen, "groups": state["param_groups"], "numbers": numbers}
        (to / GROUPS).write_text(json.dumps(document))

    def values(self) -> dict[str, Tensor]:
        """What trains, whole, by name."""
        return {name: self.among.whole(value, name).detach() for name, value in self.trainable.items()}

    def restore(self, at: Path, optimizer: bool = True) -> None:
        self._refer()
        values = load_file(at / WEIGHTS)
        if not optimizer and (at / DEPLOYED).exists():
            values |= load_file(at / DEPLOYED)
        self._put({name: self.among.part(value, name) for name, value in values.items()})
        document = json.loads((at / GROUPS).read_text())
        self.steps, self.seen = document["steps"], document["seen"]
        if optimizer:
            moments, part = load_file(at / MOMENTS), self.among.part
            averages = taken(moments, "average.", self.models.policy.device)
            self.average.values = {name: part(value, name) for name, value in averages.items()}
            self.work.adaptation.restore(self.work.network, taken(moments, "adaptation."))
            state: dict[int, dict[str, Any]] = {}
            parts = {key: part(value, self._moved(key)) for key, value in moments.items()}
            for key, value in (parts | document["numbers"]).items():
                index, name = key.split(".", 1)
                state.setdefault(int(index), {})[name] = value
            self.optimizer.load_state_dict({"state": state, "param_groups": document["groups"]})
        else:  # these weights are what was deployed; no later average may stand in for them
            self.average = Average({}, ())
            self.optimizer.state.clear()

    def close(self) -> None:
        """There is nothing: it is all this process' memory."""

    def _forget(self) -> None:
        """Drop the gradients of a step, with their weight."""
        self.optimizer.zero_grad(set_to_none=True)
        self._weight = 0.0

    def _moved(self, key: str) -> str:
        """The name of the parameter that a moment is of: its key begins with a place in the optimizer."""
        return self._order[int(key.split(".", 1)[0])]

    def _train_mode(self) -> None:
        self.work.adaptation.train_mode(self.work.network)
        self.strata.rest()

    def _penalised(self) -> dict[str, float]:
        """Add the gradients of what is minimised on top of the mean loss; returns its value, where there is any."""
        work, zero = self.work, torch.zeros((), device=self.models.policy.device)
        value: float | None = None
        for owned in (False, True):
            part = {name: p for name, p in self.trainable.items() if self.among.owned(name) is owned}
            penalties = [] if owned else [work.adaptation.penalty(work.network)]
            penalties += [r.penalty(part, self.start, work.new) for r in work.regularisers if part]
            total = sum((penalty for penalty in penalties if penalty is not None), zero)
            if not total.requires_grad:
                continue
            # The gradient is divided by the weight as a whole.
            (total * self._weight).backward()  # type: ignore[no-untyped-call]
            found = float(total.detach())
            value = (value or 0.0) + (self.among.added(found) if owned else found)
        return {} if value is None else {"penalty": value}

    def _deployed(self) -> dict[str, Tensor]:
        """The weights to measure and to save, where they are not those that train."""
        ahead = self.work.optimizer.deployed(self.optimizer)
        found = {name: ahead[p] for name, p in self.trainable.items() if p in ahead}
        return found | self.average.values

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        """Write values into the memory of what trains, which others may know of."""
        for name, value in values.items():
            self.trainable[name].copy_(value)


def _at_most(batches: Sequence[Batch], rows: int | None) -> list[Batch]:
    """Batches halved until none has more rows than that."""
    if rows is None:
        return list(batches)
    found: list[Batch] = []
    for batch in batches:
        found += [batch] if len(batch.length_R) <= rows else _at_most(batch.halves(), rows)
    return found


def _out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out: a GPU's has an error of its own, main memory only words."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def _mixed(seed: int, step: int) -> int:
    """One seed for each step of each run (the finaliser of SplitMix64; Steele et al. 2014)."""
    value = (seed * 0x9E3779B97F4A7C15 + step + 1) & (2**64 - 1)
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return (value ^ (value >> 31)) & (2**63 - 1)
