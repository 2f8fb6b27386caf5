"""Adapted linear layers as one operation: the numbers of PEFT's modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import trial
from onsa.engine.batches import micro_batches
from onsa.models.products import Group, fuse, layers
from onsa.programs.forecast import build
from onsa.programs.prepare import prepare

LORA = {"kind": "lora", "rank": 3, "alpha": 5.0}


@pytest.fixture
def start(tiny_llama: Path, chat_jsonl: Path) -> Any:
    def ready(accel: Any = "off", model: Any = None, **adaptation: Any) -> Any:
        prepared = trial.ready(tiny_llama, chat_jsonl, adaptation={**LORA, **adaptation}, accel=accel)
        recipe = prepared.recipe
        return prepare(recipe.model_copy(update={"model": recipe.model.model_copy(update=model or {})}))

    return ready


def moved(session: Any) -> None:
    """A and B somewhere else than at the start, where B is zero."""
    torch.manual_seed(4)
    with torch.no_grad():
        for name, parameter in trial.network(session).named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)


def step(prepared: Any, fused: bool) -> tuple[float, torch.Tensor]:
    session = trial.opened(prepared)
    moved(session)
    if fused:
        fuse(trial.network(session))
    batches = micro_batches(prepared.examples["train"][:8], prepared.plan, 2)
    loss = session.forward_backward(batches, trial.objective(prepared))["loss"]
    return loss, trial.gradients(session)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"targets": ["q_proj", "down_proj"]},
        {"rank_pattern": {"k_proj": 5}, "alpha_pattern": {"v_proj": 1.0}},
        {"rslora": True},
        {"init": "pissa"},
        {"freeze": ["*.layers.0.*"]},
        {"freeze": ["*.v_proj.lora_A.*"]},
    ],
    ids=str,
)
def test_loss_and_gradients_are_pefts(settings: Any, start: Any) -> None:
    prepared = start(**settings)
    (loss, gradient), (plain_loss, plain_gradient) = step(prepared, True), step(prepared, False)
    assert loss == pytest.approx(plain_loss, rel=1e-6) and trial.apart(plain_gradient, gradient) <= 1e-5


def test_on_a_base_in_four_bits_as_well(start: Any) -> None:
    prepared = start(model={"quantize": "nf4"})
    found, all_ = layers(build(prepared).network)
    assert len(found) == all_ == 14
    (loss, gradient), (plain_loss, plain_gradient) = step(prepared, True), step(prepared, False)
    assert loss == pytest.approx(plain_loss, rel=1e-5) and trial.apart(plain_gradient, gradient) <= 1e-5


def test_layers_with_one_input_are_one_group(start: Any) -> None:
    session = trial.opened(start())
    network = trial.network(session)
    fuse(network)
    found, _ = layers(network)
    sizes = []
    for layer in found:
        group: Group = layer.module.forward.__closure__[0].cell_contents
        sizes.append(len(group.members))
    assert sizes == [3, 3, 3, 1, 2, 2, 1] * 2  # q k v, o, gate up, down


@pytest.mark.parametrize("settings", [{"dropout": 0.1}, {"dora": True}], ids=str)
def test_what_has_more_in_it_is_left_to_peft(settings: Any, start: Any) -> None:
    assert layers(build(start(**settings)).network) == ([], 14)
    decisions = {d.name: d.reason for d in build(start("auto", **settings)).prepared.plan.decisions}
    assert decisions["adapted-products"] == "pass-adapted-products-shaped"


def test_switched_off_or_merged_the_base_answers(start: Any) -> None:
    prepared = start("auto")
    session = trial.opened(prepared)
    network: Any = trial.network(session)
    base = trial.outputs(session, prepared.task.head, prepared.examples["validation"])
    moved(session)
    tuned = trial.outputs(session, prepared.task.head, prepared.examples["validation"])
    assert trial.apart(base, tuned) > 1e-3
    with network.disable_adapter():
        off = trial.outputs(session, prepared.task.head, prepared.examples["validation"])
    assert torch.equal(off, base) or trial.apart(base, off) <= 1e-6
    network.merge_adapter()
    merged = trial.outputs(session, prepared.task.head, prepared.examples["validation"])
    assert trial.apart(tuned, merged) <= 1e-5


def test_an_answer_is_not_kept_for_another_input(start: Any) -> None:
    network = trial.network(trial.opened(start("auto")))
    found, _ = layers(network)
    q, k = found[0].module, found[1].module
    one, other = torch.randn(2, 3, q.in_features), torch.randn(2, 3, q.in_features)
    q(one)
    torch.testing.assert_close(k(other), k.base_layer(other))
    torch.testing.assert_close(q(other), q.base_layer(other))
