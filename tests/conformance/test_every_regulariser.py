"""What every regulariser keeps: it acts in training only, nothing at its neutral value, and the same after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml
from safetensors.torch import load_file

import trial
from onsa.engine.batches import micro_batches
from onsa.engine.sessions.local import DEPLOYED, WEIGHTS
from onsa.models.batch import collate
from onsa.programs.prepare import Prepared
from onsa.regularisers.base import Regulariser
from onsa.spec import registry
from onsa.spec.recipe import parse_recipe

on_every_head = pytest.mark.parametrize("head", ["rows", "tokens"])
KINDS = list(registry.kinds("regulariser"))
every_kind = pytest.mark.parametrize("kind", KINDS)

# The settings at which a kind leaves a run as it is, bit for bit; a kind without such settings stands in ALWAYS.
NEUTRAL: dict[str, dict[str, Any]] = {
    "dropout": {"rate": 0},
    "ema": {"decay": 0},
    "l2-sp": {"strength": 0, "strength_new": 0},
    "neftune": {"alpha": 0},
    "swa": {"start": 0.99},  # the mean of the last weights alone
}
ALWAYS = {"r-drop"}
# Settings at which a short run shows the kind, and what else it needs to act.
STRONG: dict[str, dict[str, Any]] = {"l2-sp": {"strength": 10.0}, "swa": {"start": 0.3}}
BESIDE: dict[str, list[str]] = {"r-drop": ["dropout"]}
DETERMINISTIC = sorted({"ema", "l2-sp", "swa"} & set(KINDS))
DEPLOYS = {"ema", "swa"}  # what trains is as without it; what is measured and saved is not
every_deterministic_kind = pytest.mark.parametrize("kind", DETERMINISTIC)


def regularised(kind: str, **settings: Any) -> list[Any]:
    return [{"kind": kind, **settings}, *BESIDE.get(kind, [])]


def trying(attempt: Any, head: str, given: list[Any], **sections: Any) -> Prepared:
    return cast(Prepared, attempt(head, regulariser=given, adaptation="full", **sections))


def shown(prepared: Prepared, steps: int = 6) -> tuple[Any, ...]:
    """A run's losses, its weights as they train and as they are deployed, and how it then measures."""
    session = trial.opened(prepared)
    said, _ = trial.advance(prepared, session, steps)
    numbers = [{name: value for name, value in step.items() if name != "metrics"} for step in said]
    measured = prepared.task.metrics(session.evaluate(prepared.examples["validation"], prepared.task))
    return numbers, trial.trained(session), measured


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_every_kind_is_described_here() -> None:
    assert set(KINDS) == NEUTRAL.keys() | ALWAYS and not NEUTRAL.keys() & ALWAYS


@every_kind
def test_several_survive_the_way_through_a_recipe(kind: str) -> None:
    first = cast(Regulariser, registry.load("regulariser", kind)(**STRONG.get(kind, {})))
    recipe = parse_recipe({"model": "m", "data": "d", "regulariser": [first, "ema"]})
    again = parse_recipe(yaml.safe_load(recipe.dump()))
    assert again == recipe and [type(one) for one in again.regulariser] == [
        type(first),
        *map(type, again.regulariser[1:]),
    ]
    assert again.regulariser[0] == first


@on_every_head
@pytest.mark.parametrize("kind", sorted(NEUTRAL))
def test_at_its_neutral_value_the_run_is_the_plain_one(kind: str, head: str, attempt: Any) -> None:
    plain = shown(trying(attempt, head, []))
    neutral = shown(trying(attempt, head, regularised(kind, **NEUTRAL[kind])))
    assert neutral[0] == plain[0] and same(neutral[1], plain[1]) and neutral[2] == plain[2]


@on_every_head
@every_kind
def test_it_changes_the_run(kind: str, head: str, attempt: Any) -> None:
    plain = shown(trying(attempt, head, BESIDE.get(kind, [])))
    found = shown(trying(attempt, head, regularised(kind, **STRONG.get(kind, {}))))
    assert found[2] != plain[2]
    assert same(found[1], plain[1]) == (kind in DEPLOYS)


@on_every_head
@every_kind
def test_it_acts_in_training_only(kind: str, head: str, attempt: Any) -> None:
    prepared = trying(attempt, head, regularised(kind, **STRONG.get(kind, {})))
    plain, session = trial.opened(trying(attempt, head, [])), trial.opened(prepared)
    examples = prepared.examples["validation"]
    assert torch.equal(
        trial.outputs(plain, prepared.task.head, examples), trial.outputs(session, prepared.task.head, examples)
    )
    assert same(trial.trained(plain), trial.trained(session)), "what is put in holds no parameters"


@on_every_head
@every_kind
def test_resuming_gives_the_same_bytes(kind: str, head: str, attempt: Any, tmp_path: Path) -> None:
    prepared = trying(attempt, head, regularised(kind, **STRONG.get(kind, {})))
    straight, weights, measured = shown(prepared)
    first = trial.opened(prepared)
    _, at = trial.advance(prepared, first, 4)
    first.evaluate(prepared.examples["validation"], prepared.task)  # which the straight run does not do
    first.save(tmp_path)
    del first
    second = trial.opened(prepared)
    second.restore(tmp_path)
    rest, _ = trial.advance(prepared, second, 2, at)
    assert [step["loss"] for step in rest] == [step["loss"] for step in straight[4:]]
    assert same(weights, trial.trained(second))
    assert prepared.task.metrics(second.evaluate(prepared.examples["validation"], prepared.task)) == measured


@on_every_head
@every_kind
def test_what_is_measured_is_what_is_deployed(kind: str, head: str, attempt: Any, tmp_path: Path) -> None:
    prepared = trying(attempt, head, regularised(kind, **STRONG.get(kind, {})))
    session = trial.opened(prepared)
    trial.advance(prepared, session, 6)
    measured = prepared.task.metrics(session.evaluate(prepared.examples["validation"], prepared.task))
    session.save(tmp_path)
    deployed = trial.opened(trying(attempt, head, []))
    deployed.restore(tmp_path, optimizer=False)
    assert prepared.task.metrics(deployed.evaluate(prepared.examples["validation"], prepared.task)) == measured
    trial.advance(prepared, session, 3)
    session.restore(tmp_path, optimizer=False)
    assert prepared.task.metrics(session.evaluate(prepared.examples["validation"], prepared.task)) == measured
    (tmp_path / "again").mkdir()
    session.save(tmp_path / "again")
    assert same(load_file(tmp_path / "again" / WEIGHTS), trial.trained(deployed))
    assert not (tmp_path / "again" / DEPLOYED).exists(), "the weights are what is deployed"


@on_every_head
@every_deterministic_kind
def test_micro_batches_do_not_change_the_step(kind: str, head: str, attempt: Any) -> None:
    prepared = trying(attempt, head, regularised(kind, **STRONG.get(kind, {})), optimizer=trial.CALM)
    examples = prepared.examples["train"][:8]
    ends = []
    for batches in ([collate(examples)], [collate([example]) for example in examples]):
        session = trial.opened(prepared)
        for _ in range(2):  # a pull to the start shows from the second step on
            session.forward_backward(batches, trial.objective(prepared))
            session.step()
        ends.append(torch.cat([value.flatten() for value in trial.trained(session).values()]))
    assert trial.apart(*ends) <= 1e-5


@on_every_head
@every_deterministic_kind
def test_speed_passes_do_not_change_the_result(kind: str, head: str, attempt: Any) -> None:
    given = regularised(kind, **STRONG.get(kind, {}))
    slow, fast = (shown(trying(attempt, head, given, optimizer=trial.CALM, accel=mode)) for mode in ("off", "auto"))
    flat = [torch.cat([value.flatten() for value in weights.values()]) for weights in (slow[1], fast[1])]
    assert trial.apart(*flat) <= 5e-5
    assert slow[2] == pytest.approx(fast[2], rel=1e-4, abs=1e-6)


@on_every_head
@every_kind
def test_the_gradient_is_finite_and_there(kind: str, head: str, attempt: Any) -> None:
    prepared = trying(attempt, head, regularised(kind, **STRONG.get(kind, {})))
    session = trial.opened(prepared)
    batches = micro_batches(prepared.examples["train"][:8], prepared.plan, 1)
    session.forward_backward(batches, trial.objective(prepared))
    found = trial.gradients(session)
    assert bool(found.isfinite().all()) and float(found.norm()) > 0
