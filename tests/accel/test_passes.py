"""Speed passes: alone and together they change no loss and no gradient, and each says why it does not apply."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import trial
from onsa.accel import like_lengths
from onsa.accel.passes import PASSES
from onsa.accel.plan import Plan, decide
from onsa.engine.batches import evaluation_batches, micro_batches
from onsa.models.batch import Example
from onsa.models.heads import Head
from onsa.programs.prepare import Prepared
from onsa.spec.errors import RecipeError
from onsa.spec.sections import Accel

NAMES = [speed_pass.NAME for speed_pass in PASSES]
CHOSEN = [chosen for size in range(1, len(NAMES) + 1) for chosen in combinations(NAMES, size)]
PLAIN = Plan(Head.TOKENS, "cpu", "adamw", lengths=(3, 9, 5), supervised_share=0.5, plain_head=True)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, tiny_llama: Path) -> dict[str, Prepared]:
    """A plain run of each head, without dropout."""
    import tiny

    folder = tmp_path_factory.mktemp("accel")
    data = {"rows": tiny.write_csv(folder / "topics.csv"), "tokens": tiny.write_chat(folder / "chat.jsonl")}
    return {
        head: trial.ready(trial.still(base, folder / head), data[head], accel="off", optimizer=trial.CALM)
        for head, base in (("rows", tiny_bert), ("tokens", tiny_llama))
    }


@pytest.fixture(scope="module")
def plainly(bases: dict[str, Prepared]) -> dict[str, list[torch.Tensor]]:
    """What the plain plan of each head comes to."""
    return {head: measured(prepared, 1) for head, prepared in bases.items()}


def measured(prepared: Prepared, accumulate: int) -> list[torch.Tensor]:
    """Loss and gradient of a step, losses and weights of four, and what the validation rows then lose."""
    session = trial.opened(prepared)
    examples = prepared.examples["train"][:16]
    means = session.forward_backward(micro_batches(examples, prepared.plan, accumulate), trial.objective(prepared))
    loss, gradient = means["loss"], trial.gradients(session)
    session = trial.opened(prepared)
    steps, _ = trial.advance(prepared, session, 4)
    losses = torch.tensor([loss, *(step["loss"] for step in steps)], dtype=torch.float64)
    weights = torch.cat([value.flatten() for value in trial.trained(session).values()])
    outcome = session.evaluate(prepared.examples["validation"], prepared.task)
    return [losses, gradient, weights, torch.from_numpy(outcome.loss_R)]


@pytest.mark.parametrize("chosen", CHOSEN, ids="+".join)
@pytest.mark.parametrize("head", ["rows", "tokens"])
def test_losses_and_gradients_stay(head: str, chosen: tuple[str, ...], bases: Any, plainly: Any) -> None:
    plain = bases[head]
    plan = replace(plain.plan, decisions=())
    plan = decide(plan, Accel(skip=tuple(name for name in NAMES if name not in chosen)), PASSES)
    if not any(decision.applied for decision in plan.decisions):
        pytest.skip("refused on this head")
    assert plan != replace(plain.plan, decisions=plan.decisions), "the plan must change"
    found = measured(replace(plain, plan=plan), 3 if chosen == tuple(NAMES) else 1)
    assert all(trial.apart(one, other) <= 1e-5 for one, other in zip(plainly[head], found, strict=True))


REFUSALS = [
    ("like-lengths", {"lengths": (4, 4, 4)}, "pass-like-lengths-even"),
    ("supervised-head", {"head": Head.ROWS}, "pass-supervised-head-rows"),
    ("supervised-head", {"plain_head": False}, "pass-supervised-head-shaped"),
    ("fused-optimizer", {"optimizer": "lion"}, "pass-fused-optimizer-none"),
]


@pytest.mark.parametrize(("name", "facts", "code"), REFUSALS, ids=[code for *_, code in REFUSALS])
def test_a_pass_says_why_it_does_not_apply(name: str, facts: dict[str, Any], code: str) -> None:
    plan = replace(PLAIN, **facts)
    decision = next(d for d in decide(plan, Accel(), PASSES).decisions if d.name == name)
    assert (decision.applied, decision.reason) == (False, code) and decision.why
    applied = next(d for d in decide(PLAIN, Accel(), PASSES).decisions if d.name == name)
    assert (applied.applied, applied.reason) == (True, f"pass-{name}") and applied.why


def test_every_pass_can_refuse_or_is_always_right() -> None:
    assert {name for name, *_ in REFUSALS} == set(NAMES), "state here what each pass refuses"


def test_off_is_the_plain_plan() -> None:
    plan = decide(PLAIN, Accel(mode="off"), PASSES)
    assert replace(plan, decisions=()) == PLAIN
    assert {(d.applied, d.reason) for d in plan.decisions} == {(False, "pass-off")}


@pytest.mark.parametrize("name", NAMES)
def test_a_pass_can_be_skipped(name: str) -> None:
    decisions = {d.name: d for d in decide(PLAIN, Accel(skip=(name,)), PASSES).decisions}
    assert (decisions[name].applied, decisions[name].reason) == (False, "pass-skipped") and decisions[name].why
    assert all(d.applied for other, d in decisions.items() if other != name)


def test_a_pass_that_is_not_there_cannot_be_skipped() -> None:
    with pytest.raises(RecipeError) as caught:
        decide(PLAIN, Accel(skip=("like-length", "nonsense")), PASSES)
    assert [problem.code for problem in caught.value.problems] == ["pass-unknown"] * 2
    assert "like-lengths" in caught.value.problems[0].fix


lengths = st.lists(st.integers(1, 3000), min_size=1, max_size=80)


@given(lengths=lengths, device=st.sampled_from(["cpu", "cuda"]), at_least=st.integers(1, 90))
def test_blocks_hold_every_row_once_within_their_limits(lengths: list[int], device: str, at_least: int) -> None:
    found = like_lengths.blocks(lengths, device, at_least)
    assert sorted(index for block in found for index in block) == list(range(len(lengths)))
    for block in found:
        padded = len(block) * max(lengths[index] for index in block)
        assert len(block) == 1 or padded <= like_lengths.BLOCK_TOKENS[device]
        assert len(block) <= -(-len(lengths) // at_least)
    assert found == like_lengths.blocks(lengths, device, at_least)
    widths = [lengths[index] for block in found for index in block]
    assert widths == sorted(widths, reverse=True), "rows of like length stand together"


@given(lengths=lengths, accumulate=st.integers(1, 90), blocks=st.sampled_from(["as-drawn", "like-lengths"]))
def test_micro_batches_hold_every_row_once(lengths: list[int], accumulate: int, blocks: Any) -> None:
    examples = [Example(np.zeros(length, np.int32), target=0, row=row) for row, length in enumerate(lengths)]
    plan = replace(PLAIN, blocks=blocks)
    for batches in (micro_batches(examples, plan, accumulate), evaluation_batches(examples, plan)):
        assert sorted(row for batch in batches for row in batch.row_R) == list(range(len(lengths)))
    batches = micro_batches(examples, plan, accumulate)
    assert max(len(batch.row_R) for batch in batches) <= -(-len(lengths) // accumulate)


@pytest.mark.parametrize("blocks", ["as-drawn", "like-lengths"])
def test_no_rows_are_no_batches(blocks: Any) -> None:
    assert evaluation_batches([], replace(PLAIN, blocks=blocks)) == []


@given(st.lists(st.integers(1, 6000), max_size=100))
def test_plain_evaluation_is_bounded_in_rows_and_tokens(lengths: list[int]) -> None:
    examples = [Example(np.zeros(length, np.int32), target=0, row=row) for row, length in enumerate(lengths)]
    found = evaluation_batches(examples, PLAIN)
    assert [row for batch in found for row in batch.row_R] == list(range(len(lengths)))
    for batch in found:
        rows = len(batch.row_R)
        assert rows == 1 or (rows <= 32 and rows * max(batch.length_R) <= 4096)
