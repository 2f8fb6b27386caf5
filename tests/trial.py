"""Small runs for tests, put together as :mod:`onsa.programs.train` puts them together, but a step at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from onsa.engine.batches import micro_batches
from onsa.engine.loop import Job
from onsa.engine.sessions.base import Session
from onsa.models.batch import Example, collate
from onsa.models.heads import Head
from onsa.objectives.base import Objective
from onsa.programs.forecast import build, work
from onsa.programs.prepare import Prepared, prepare
from onsa.sources.base import Cursor
from onsa.spec import registry
from onsa.spec.recipe import parse_recipe

# What kinds cannot do without, by axis and kind.
NEEDED: dict[tuple[str, str], dict[str, Any]] = {
    ("source", "rollouts"): {"reward": [{"kind": "length"}]},
    ("reward", "function"): {"entry": "count"},
    ("reward", "judge"): {"run": "judge"},
    ("reward", "json-schema"): {"shape": {"type": "object"}},
    ("reward", "model"): {"run": "scorer"},
    ("reward", "multi"): {"graders": {"short": {"kind": "length", "most": 3}}, "calculate_output": "2 * short"},
    ("reward", "score-model"): {"model": "dpo-1", "input": [{"content": "{{ sample.output_text }}"}]},
    ("reward", "python"): {"source": "def grade(sample, item):\n    return len(sample['output_text'])\n"},
    ("reward", "regex"): {"pattern": "rain"},
    ("reward", "string-check"): {"reference": "rain"},
    ("reward", "text-similarity"): {"reference": "rain"},
}
TRAIN = {"batch_rows": 8, "max_steps": 6, "precision": "fp32"}
ENGINE = {"kind": "local", "device": "cpu", "threads": 1}
# Gradients that are zero but for rounding (a key's bias) must not be blown up to a whole step by Adam's quotient.
CALM = {"kind": "adamw", "eps": 1e-3}
DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")


def ready(model: Path, data: Path, **sections: Any) -> Prepared:
    """A prepared recipe; sections are laid over those of a short run on one thread."""
    train = sections.pop("train", {})
    values = {"model": str(model), "data": str(data), "engine": ENGINE, "train": {**TRAIN, **train}, **sections}
    return prepare(parse_recipe(values))


def opened(prepared: Prepared) -> Session:
    """A session over a freshly loaded and adapted base."""
    return prepared.engine.open(work(build(prepared)))


def needed(axis: str, kind: str) -> dict[str, Any]:
    """The least that a kind's settings are."""
    return NEEDED.get((axis, kind), {})


def placed(axis: str, settings: dict[str, Any]) -> dict[str, Any]:
    """A kind's settings where they stand in a recipe."""
    if axis in registry.INNER:
        outer, _, name = registry.INNER[axis].partition(".")
        return {outer: {"kind": "rollouts", name: [settings]}}
    return {axis: settings}


def objective(prepared: Prepared) -> Objective:
    return cast(Objective, prepared.recipe.objective)


def advance(
    prepared: Prepared, session: Session, steps: int, at: Cursor | None = None
) -> tuple[list[dict[str, Any]], Cursor]:
    """Take some steps; what each one gave, and the place behind the last."""
    said, at = [], at or Cursor()
    for examples, after in islice(prepared.source.steps(prepared.feed, at), steps):
        batches = micro_batches(examples, prepared.plan, prepared.recipe.train.accumulate)
        means = session.forward_backward(batches, objective(prepared))
        said.append({**means, **vars(session.step())})
        at = after
    return said, at


def job(prepared: Prepared, session: Session, checkpoints: Path, **more: Any) -> Job:
    """The loop's job."""
    fields = {
        "session": session,
        "source": prepared.source,
        "feed": prepared.feed,
        "task": prepared.task,
        "examiner": prepared.task,
        "objective": objective(prepared),
        "plan": prepared.plan,
        "validation": prepared.examples["validation"],
        "checkpoints": checkpoints,
    }
    return Job(**{**fields, **more})


def network(session: Session) -> Any:
    return session.models.policy.network


def trained(session: Session) -> dict[str, Tensor]:
    """What trains, by name."""
    return {name: p.detach().clone() for name, p in network(session).named_parameters() if p.requires_grad}


def gradients(session: Session) -> Tensor:
    """All gradients in one line."""
    return torch.cat([p.grad.flatten() for p in network(session).parameters() if p.grad is not None])


def outputs(session: Session, head: Head, examples: Iterable[Example]) -> Tensor:
    """What a network says to some examples, without dropout."""
    network(session).eval()
    batch = collate(list(examples))
    with torch.inference_mode():
        policy = session.models.policy
        return policy.classes(batch) if head is Head.ROWS else policy.logprobs(batch)


def apart(one: Tensor, other: Tensor) -> float:
    """The distance of two tensors, relative to the first's length."""
    return float((one.double() - other.double()).norm() / one.double().norm().clamp_min(1e-30))


def still(folder: Path, to: Path) -> Path:
    """A copy of a base without dropout, so that two ways to compute the same thing can be compared."""
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    config |= dict.fromkeys((name for name in DROPOUTS if name in config), 0.0)
    (to / "config.json").write_text(json.dumps(config))
    return to
