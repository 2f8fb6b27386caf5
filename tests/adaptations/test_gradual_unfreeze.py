"""Gradual unfreezing: the schedule, in the steps and in the run's events, and going on in the middle of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import onsa
import trial
from onsa.adaptations import gradual_unfreeze
from onsa.adaptations.gradual_unfreeze import GradualUnfreeze
from onsa.engine.events import Stepped
from onsa.models.blocks import depths
from onsa.spec.recipe import parse_recipe

STEPS = {"max_steps": 12}
# Head, block 2, block 1, embeddings over the first half of 12 steps: a stage every two steps.
ORDER = ["top", "block 2", "block 1", "embeddings"]


def begun(step: int) -> set[str]:
    return set(ORDER[: min(step // 2, 3) + 1])


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.99])
@pytest.mark.parametrize("total", [1, 7, 400])
def test_stages_are_of_equal_length_and_end_at_their_share(share: float, total: int) -> None:
    lowest = [GradualUnfreeze(share=share).lowest(13, step, total) for step in range(total)]
    assert lowest[0] == 13 and lowest == sorted(lowest, reverse=True)
    assert all(value == 0 for step, value in enumerate(lowest) if step >= share * total + 1e-9)
    if total == 400 and share > 0.2:
        lengths = [lowest.count(depth) for depth in range(1, 14)]
        assert set(lowest) == set(range(14)) and max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("head", ["rows", "talks"])
def test_each_group_begins_in_its_turn_and_then_goes_on(head: str, request: pytest.FixtureRequest) -> None:
    prepared = request.getfixturevalue(head)("gradual-unfreeze", train=STEPS)
    session: Any = trial.opened(prepared)
    at, before = None, trial.trained(session)
    assert len(before) == len(list(trial.network(session).parameters())), "what trains at any time is marked"
    for step in range(12):
        (said,), at = trial.advance(prepared, session, 1, at)
        labels = {name.removesuffix(", decay") for name in said["rates"]}
        assert labels == {*ORDER, *({"new"} if head == "rows" else ())}
        assert {name for name, rate in said["rates"].items() if rate > 0 and name != "new"} <= begun(step)
        if said["lr"] > 0:
            assert {name for name, rate in said["rates"].items() if rate > 0 and name != "new"} == begun(step)
        now = {name: session.trainable[name].detach().clone() for name in before}
        moved = {group_of(name) for name in now if not torch.equal(now[name], before[name])}
        assert moved - {"new"} <= begun(step)
        before = now
    assert moved - {"new"} == set(ORDER)


def group_of(name: str) -> str:
    if name.startswith("classifier"):
        return "new"
    if "embed" in name:
        return "embeddings"
    return "block 1" if ".0." in name else "block 2" if ".1." in name else "top"


def test_what_began_earlier_keeps_its_optimizer_state(rows: Any) -> None:
    """A group's count of steps is that since its own beginning, in one optimizer for all."""
    prepared = rows("gradual-unfreeze", train=STEPS)
    session: Any = trial.opened(prepared)
    optimizer = session.optimizer
    trial.advance(prepared, session, 5)
    assert session.optimizer is optimizer
    state = {
        name: int(optimizer.state[p]["step"]) if p in optimizer.state else 0 for name, p in session.trainable.items()
    }
    assert state["classifier.weight"] == state["bert.pooler.dense.weight"] == 5
    assert state["bert.encoder.layer.1.output.dense.weight"] == 3
    assert state["bert.encoder.layer.0.output.dense.weight"] == 1
    assert state["bert.embeddings.word_embeddings.weight"] == 0


@pytest.mark.parametrize("kill", [1, 2, 3, 5, 6, 9])
def test_going_on_inside_of_the_schedule_gives_the_same_bytes(kill: int, rows: Any, tmp_path: Path) -> None:
    prepared = rows("gradual-unfreeze", train=STEPS)
    whole = trial.opened(prepared)
    straight, _ = trial.advance(prepared, whole, 12)
    first = trial.opened(prepared)
    half, at = trial.advance(prepared, first, kill)
    first.save(tmp_path)
    second = trial.opened(prepared)
    second.restore(tmp_path)
    rest, _ = trial.advance(prepared, second, 12 - kill, at)
    assert [*half, *rest] == straight
    ends = trial.trained(second)
    assert all(torch.equal(value, ends[name]) for name, value in trial.trained(whole).items())


def test_what_is_frozen_by_name_stays_frozen_when_its_turn_comes(rows: Any) -> None:
    prepared = rows({"kind": "gradual-unfreeze", "freeze": ["*.layer.1.*", "embeddings"]}, train=STEPS)
    session = trial.opened(prepared)
    before = {name: p.detach().clone() for name, p in trial.network(session).named_parameters()}
    trial.advance(prepared, session, 12)
    for name, p in trial.network(session).named_parameters():
        frozen = ".layer.1." in name or "word_embeddings" in name
        assert torch.equal(p, before[name]) == frozen and p.requires_grad != frozen, name


def test_the_schedule_shows_in_the_events_of_a_run(tiny_bert: Path, topics_csv: Path) -> None:
    recipe = {
        "model": str(tiny_bert),
        "data": str(topics_csv),
        "adaptation": "gradual-unfreeze",
        "engine": trial.ENGINE,
        "schedule": "constant",
        "train": {**trial.TRAIN, "max_steps": 12},
        "evaluate": {"bootstrap": 100, "baseline": False},
    }
    told = [event for event in onsa.train(parse_recipe(recipe)) if isinstance(event, Stepped)]
    trains = [{name for name, rate in event.rates.items() if rate > 0} - {"new"} for event in told]
    assert [found - {"top"} for found in trains] == [begun(step) - {"top"} for step in range(12)]


def test_a_network_is_walked_once(rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = rows({"kind": "gradual-unfreeze", "freeze": ["*.layer.0.*"]}, train=STEPS)
    walks: list[Any] = []
    monkeypatch.setattr(gradual_unfreeze, "depths", lambda network: walks.append(network) or depths(network))
    session = trial.opened(prepared)
    trial.advance(prepared, session, 4)
    assert len(walks) == 1
    other = trial.opened(prepared)
    trial.advance(prepared, other, 1)
    assert walks == [trial.network(session), trial.network(other)]
