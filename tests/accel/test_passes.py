"""Speed passes: alone and together they change no loss and no gradient, and each says why it does not apply."""

from __future__ import annotations

import math
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
from onsa.accel import like_lengths, packing, recompute
from onsa.accel.anatomy import Anatomy
from onsa.accel.passes import PASSES, check_names
from onsa.accel.plan import Plan, decide
from onsa.engine.batches import evaluation_batches, micro_batches
from onsa.models.batch import Example
from onsa.models.heads import Head
from onsa.programs.forecast import build
from onsa.programs.prepare import Prepared
from onsa.spec.errors import RecipeError
from onsa.spec.sections import Accel

NAMES = [speed_pass.NAME for speed_pass in PASSES]
ALONE, PAIRS, ALL = [(name,) for name in NAMES], list(combinations(NAMES, 2)), tuple(NAMES)
UPPER = r".*layers?\.1\..*(query|value|q_proj|up_proj)"  # some products of the tiny bases' second block
ADAPTATIONS: dict[str, Any] = {
    "full": "full",
    "lora": "lora",
    "lora above": {"kind": "lora", "targets": UPPER},
    "head": "head",
    "last-layers": {"kind": "last-layers", "blocks": 1},
    "gradual-unfreeze": "gradual-unfreeze",
}
TIMES = {"sdpa": 2.0, "onsa_products": 1.0}
LINED = {**TIMES, "onsa_line": 1.0, "onsa_line_products": 1.2}
FACTS = Anatomy(
    blocks=2,
    width=8,
    stages=((2, 1.0),),
    plain_products=14,
    products=14,
    halves={(8, 8): True},
    kernels=("layers.0.mlp",),
    vocabulary=90,
    attention=TIMES,
    recomputes=True,
)
PLAIN = Plan(
    Head.TOKENS,
    "cpu",
    "adamw",
    lengths=(3, 9, 5),
    supervised_share=0.5,
    plain_head=True,
    epochs=3.0,
    rows=3,
    tokens=17,
    anatomy=FACTS,
    needed=2,
    free=1,
)
# Where most passes apply, packing does not.
LONG = replace(PLAIN, padding=0.2, anatomy=replace(FACTS, stages=((None, 1.0),), attention=LINED))
SHARED = replace(LONG, repeated=0.3, anatomy=replace(LONG.anatomy or FACTS, shares=True))
FITS = {"packing": LONG, "shared-prefix": SHARED}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, tiny_llama: Path) -> Any:
    """A prepared run of a head and an adaptation without dropout, with some passes and no others."""
    import tiny

    folder = tmp_path_factory.mktemp("accel")
    data = {
        "rows": tiny.write_csv(folder / "topics.csv"),
        "tokens": tiny.write_chat(folder / "chat.jsonl"),
        "answers": tiny.write_pairs(folder / "pairs.jsonl"),
    }
    lively = {"rows": tiny_bert, "tokens": tiny_llama, "answers": tiny_llama}
    bases = {head: trial.still(base, folder / head) for head, base in lively.items()}

    def ready(head: str, adaptation: str, chosen: tuple[str, ...]) -> Prepared:
        accel = {"skip": [name for name in NAMES if name not in chosen]} if chosen else "off"
        train = {"max_steps": 24}  # two passes over the rows, so that what is kept is used
        settings = {"adaptation": ADAPTATIONS[adaptation], "optimizer": trial.CALM, "train": train}
        return trial.ready(bases[head], data[head], accel=accel, **settings)

    return ready


@pytest.fixture(scope="module")
def plainly(start: Any) -> Any:
    """What the plain path of a head and an adaptation comes to."""
    known: dict[tuple[str, str], list[torch.Tensor]] = {}

    def found(head: str, adaptation: str) -> list[torch.Tensor]:
        if (head, adaptation) not in known:
            known[head, adaptation] = measured(start(head, adaptation, ()), 1)
        return known[head, adaptation]

    return found


def measured(prepared: Prepared, accumulate: int) -> list[torch.Tensor]:
    """Loss and gradient of a step, losses and weights of four at the beginning, and what the validation rows lose."""
    prepared = build(prepared).prepared
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


# Each pass alone and all together on every adaptation; each two together where all of them apply.
CASES = [
    (head, adaptation, chosen)
    for head in ("rows", "tokens")
    for adaptation in ADAPTATIONS
    for chosen in (*ALONE, *(PAIRS if adaptation == "lora above" else ()), ALL)
]
# Rows that hold answers, of which a prompt may be computed once, beside each other pass.
WITH_SHARED = [pair for pair in PAIRS if "shared-prefix" in pair]
CASES += [("answers", adaptation, chosen) for adaptation in ("full", "lora") for chosen in (*ALONE, *WITH_SHARED, ALL)]
CASES += [("answers", "last-layers", chosen) for chosen in (*ALONE, ALL)]


@pytest.mark.parametrize(("head", "adaptation", "chosen"), CASES)
def test_losses_and_gradients_stay(
    head: str, adaptation: str, chosen: tuple[str, ...], start: Any, plainly: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "SLOWER", math.inf)  # rows are too short here for a line to pay
    prepared = start(head, adaptation, chosen)
    plan = build(prepared).prepared.plan
    applied = {decision.name for decision in plan.decisions if decision.applied}
    if applied != set(chosen) and chosen != ALL:
        pytest.skip("refused here; what is left is another case")
    found = measured(prepared, 3 if chosen == ALL else 1)
    assert all(trial.apart(one, other) <= 1e-5 for one, other in zip(plainly(head, adaptation), found, strict=True))


REFUSALS = [
    ("like-lengths", {"lengths": (4, 4, 4)}, "pass-like-lengths-even"),
    ("supervised-head", {"head": Head.ROWS}, "pass-supervised-head-rows"),
    ("supervised-head", {"plain_head": False}, "pass-supervised-head-shaped"),
    ("fused-optimizer", {"optimizer": "lion"}, "pass-fused-optimizer-none"),
    ("frozen-boundary", {"anatomy": replace(FACTS, stages=((None, 1.0),))}, "pass-frozen-boundary-none"),
    ("frozen-boundary", {"anatomy": replace(FACTS, reads=None)}, "pass-frozen-boundary-shaped"),
    ("frozen-boundary", {"epochs": 1.0}, "pass-frozen-boundary-once"),
    ("frozen-boundary", {"states_gb": 0.0}, "pass-frozen-boundary-room"),
    ("attention", {"anatomy": replace(FACTS, attention={"sdpa": 1.0})}, "pass-attention-shaped"),
    ("attention", {"anatomy": replace(FACTS, attention={"sdpa": 1.0, "onsa_causal": 0.99})}, "pass-attention-fused"),
    ("attention", vars(LONG), "pass-attention-packed"),
    ("packing", {"head": Head.ROWS}, "pass-supervised-head-rows"),
    ("packing", vars(SHARED), "pass-packing-folded"),
    ("shared-prefix", {"head": Head.ROWS}, "pass-shared-prefix-rows"),
    ("shared-prefix", {"repeated": 0.0}, "pass-shared-prefix-none"),
    ("shared-prefix", {"repeated": 0.01}, "pass-shared-prefix-short"),
    ("shared-prefix", {"anatomy": replace(FACTS, shares=True)}, "pass-shared-prefix-kept"),
    ("shared-prefix", {"anatomy": LONG.anatomy}, "pass-shared-prefix-shaped"),
    ("packing", {"anatomy": replace(FACTS, attention=LINED)}, "pass-packing-kept"),
    ("packing", {"padding": 0.01}, "pass-packing-even"),
    ("packing", {"anatomy": replace(LONG.anatomy, attention=TIMES)}, "pass-packing-shaped"),
    ("packing", {"anatomy": replace(LONG.anatomy, attention=TIMES | {"onsa_line": 9.0})}, "pass-packing-slow"),
    ("recompute", {"free": 100}, "pass-recompute-fits"),
    ("recompute", {"anatomy": replace(FACTS, recomputes=False)}, "pass-recompute-shaped"),
    ("chunked-head", {"head": Head.ROWS}, "pass-supervised-head-rows"),
    ("chunked-head", {"plain_head": False}, "pass-chunked-head-every"),
    ("chunked-head", {"anatomy": replace(FACTS, vocabulary=0)}, "pass-chunked-head-shaped"),
    ("kernels", {"anatomy": replace(FACTS, kernels=())}, "pass-kernels-none"),
    ("kernels", {"device": "cuda"}, "pass-kernels-device"),
    ("adapted-products", {"anatomy": replace(FACTS, plain_products=0, products=0)}, "pass-adapted-products-none"),
    ("adapted-products", {"anatomy": replace(FACTS, plain_products=0)}, "pass-adapted-products-shaped"),
]


@pytest.mark.parametrize(("name", "facts", "code"), REFUSALS, ids=[code for *_, code in REFUSALS])
def test_a_pass_says_why_it_does_not_apply(name: str, facts: dict[str, Any], code: str) -> None:
    fitting = FITS.get(name, PLAIN)
    plan = replace(fitting, **facts)
    decision = next(d for d in decide(plan, Accel(), PASSES).decisions if d.name == name)
    assert (decision.applied, decision.reason) == (False, code) and decision.why
    applied = next(d for d in decide(fitting, Accel(), PASSES).decisions if d.name == name)
    assert (applied.applied, applied.reason) == (True, f"pass-{name}") and applied.why


def test_every_pass_can_refuse_or_is_always_right() -> None:
    assert {name for name, *_ in REFUSALS} == set(NAMES), "state here what each pass refuses"


def test_off_is_the_plain_plan() -> None:
    plan = decide(PLAIN, Accel(mode="off"), PASSES)
    assert replace(plan, decisions=()) == PLAIN
    assert {(d.applied, d.reason) for d in plan.decisions} == {(False, "pass-off")}


@pytest.mark.parametrize("name", NAMES)
def test_a_pass_can_be_skipped(name: str) -> None:
    plan = decide(FITS.get(name, PLAIN), Accel(skip=(name,)), PASSES)
    decisions = {d.name: d for d in plan.decisions}
    assert (decisions[name].applied, decisions[name].reason) == (False, "pass-skipped") and decisions[name].why
    needs = {"chunked-head"} if name == "supervised-head" else set()  # what works only on top of it
    if name not in FITS:
        assert all(d.applied for other, d in decisions.items() if other not in {name, *needs, *FITS})


def test_a_pass_that_is_not_there_cannot_be_skipped() -> None:
    with pytest.raises(RecipeError) as caught:
        check_names(Accel(skip=("like-length", "nonsense")))
    assert [problem.code for problem in caught.value.problems] == ["pass-unknown"] * 2
    assert "like-lengths" in caught.value.problems[0].fix


@pytest.mark.parametrize("adaptation", ["full", "lora", "last-layers"])
@pytest.mark.parametrize("head", ["rows", "tokens"])
def test_what_is_computed_anew_is_the_same(
    head: str, adaptation: str, start: Any, plainly: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recompute, "SHARE", 0.0)  # no room at all
    prepared = start(head, adaptation, ALL)
    assert build(prepared).prepared.plan.recompute
    found = measured(prepared, 1)
    assert all(trial.apart(one, other) <= 1e-5 for one, other in zip(plainly(head, adaptation), found, strict=True))


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


@given(lengths=lengths, device=st.sampled_from(["cpu", "cuda"]), at_least=st.integers(1, 90))
def test_lines_hold_every_row_once_within_their_limits(lengths: list[int], device: str, at_least: int) -> None:
    found = packing.lines(lengths, device, at_least)
    assert sorted(index for line in found for index in line) == list(range(len(lengths)))
    for line in found:
        assert len(line) == 1 or sum(lengths[index] for index in line) <= like_lengths.BLOCK_TOKENS[device]
        assert len(line) <= -(-len(lengths) // at_least)
    assert found == packing.lines(lengths, device, at_least)


LAID = [{"blocks": "as-drawn"}, {"blocks": "like-lengths"}, {"layout": "packed"}]


@given(lengths=lengths, accumulate=st.integers(1, 90), laid=st.sampled_from(LAID))
def test_micro_batches_hold_every_row_once(lengths: list[int], accumulate: int, laid: Any) -> None:
    examples = [Example(np.zeros(length, np.int32), target=0, row=row) for row, length in enumerate(lengths)]
    plan = replace(PLAIN, **laid)
    for batches in (micro_batches(examples, plan, accumulate), evaluation_batches(examples, plan)):
        assert sorted(row for batch in batches for row in batch.row_R) == list(range(len(lengths)))
    batches = micro_batches(examples, plan, accumulate)
    assert max(len(batch.row_R) for batch in batches) <= -(-len(lengths) // accumulate)


@pytest.mark.parametrize("laid", LAID)
def test_no_rows_are_no_batches(laid: Any) -> None:
    assert evaluation_batches([], replace(PLAIN, **laid)) == []


@given(st.lists(st.integers(1, 6000), max_size=100))
def test_plain_evaluation_is_bounded_in_rows_and_tokens(lengths: list[int]) -> None:
    examples = [Example(np.zeros(length, np.int32), target=0, row=row) for row, length in enumerate(lengths)]
    found = evaluation_batches(examples, PLAIN)
    assert [row for batch in found for row in batch.row_R] == list(range(len(lengths)))
    for batch in found:
        rows = len(batch.row_R)
        assert rows == 1 or (rows <= 32 and rows * max(batch.length_R) <= 4096)
