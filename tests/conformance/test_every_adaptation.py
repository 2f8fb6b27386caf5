"""What every adaptation keeps, on a row head and on a token head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

import trial
from onsa.adaptations.base import Adaptation
from onsa.engine.batches import micro_batches
from onsa.engine.sessions.base import Session
from onsa.models.batch import collate
from onsa.models.fetch import locate
from onsa.models.load import load
from onsa.models.policy import Models, Policy
from onsa.programs.forecast import build
from onsa.programs.prepare import Prepared
from onsa.spec import registry
from onsa.spec.errors import ModelError, RecipeError

OUTPUT = "lm_head.weight"  # the tiny Llama's output layer, which shares the weight of the input embeddings
# What a kind that is no adapter promises to train, by name. Adapters train what they add and nothing of the base.
PROMISED: dict[str, Callable[[str], bool]] = {
    "full": lambda name: True,
    "head": lambda name: name in (OUTPUT, "classifier.weight", "classifier.bias"),
    "last-layers": lambda name: "embed" not in name,  # the tiny bases have two blocks
    "gradual-unfreeze": lambda name: True,
    "bitfit": lambda name: name.endswith(".bias"),
    "layer-norm": lambda name: "norm" in name.lower(),
}
UNTIED = ("head", "last-layers", "gradual-unfreeze")  # kinds that give it one of its own
# Adapters whose first output is not the base's: what stands in front of every row is seen from the first step.
STARTS_ELSEWHERE = frozenset({"prefix", "prompt", "p-tuning"})
ENCODED = frozenset({"p-tuning"})  # of these what an encoder gave is saved, and not the encoder
SLOW = {"peft": 1e-7}  # AdaLoRA's update is a product of three factors, of which one starts at zero and two near it
REFUSED = {("bitfit", "tokens"): "biases-missing"}  # what cannot work on the base of a head, and is refused as such

PAIRS = [(kind, head) for kind in registry.kinds("adaptation") for head in ("rows", "tokens")]
every_kind_on_every_head = pytest.mark.parametrize(("kind", "head"), [pair for pair in PAIRS if pair not in REFUSED])


def adaptation(prepared: Prepared) -> Adaptation:
    return cast(Adaptation, prepared.recipe.adaptation)


def base(prepared: Prepared) -> Any:
    task, recipe = prepared.task, prepared.recipe
    return load(prepared.base.folder, recipe.model, task.head, task.outputs, task.hf_problem, recipe.seed)


def untied(kind: str, head: str) -> bool:
    return kind in UNTIED and head == "tokens"


def session_of(prepared: Prepared, network: Any) -> Session:
    """Something to ask for outputs."""
    session = trial.opened(prepared)
    session.models = Models(Policy(network, prepared.tokenizer.pad_token_id, torch.device("cpu")))
    return session


def said(prepared: Prepared, session: Session) -> torch.Tensor:
    return trial.outputs(session, prepared.task.head, prepared.examples["validation"])


@pytest.mark.parametrize(("kind", "head"), REFUSED)
def test_what_cannot_work_is_refused_before_it_begins(kind: str, head: str, attempt: Any) -> None:
    with pytest.raises(RecipeError) as caught:
        trial.opened(attempt(head, adaptation=kind))
    assert [problem.code for problem in caught.value.problems] == [REFUSED[kind, head]]


@every_kind_on_every_head
def test_what_is_promised_trains_and_nothing_else(kind: str, head: str, attempt: Any) -> None:
    prepared = attempt(head, adaptation=kind)
    plain = base(prepared)
    of_base = {id(p): (name, p.numel()) for name, p in plain.network.named_parameters()}
    network = adaptation(prepared).apply(plain.network, prepared.task.head, plain.new, 6)
    free = {name: p for name, p in network.named_parameters() if p.requires_grad}
    stems = {name.rsplit(".", 1)[0] for name in plain.new}
    assert free and all(any(stem in name for name in free) for stem in stems), "what is new always trains"
    if adaptation(prepared).adapter:
        assert not [name for name, p in free.items() if id(p) in of_base and of_base[id(p)][0] not in plain.new]
        assert sum(p.numel() for p in free.values()) < sum(size for _, size in of_base.values())
    else:
        own = {name for name, _ in of_base.values()} | ({OUTPUT} if untied(kind, head) else set())
        assert set(free) == {name for name in own if PROMISED[kind](name) or name in plain.new}
    session = trial.opened(prepared)
    untouched = {n: p.detach().clone() for n, p in trial.network(session).named_parameters() if not p.requires_grad}
    trial.advance(prepared, session, 1)
    after = dict(trial.network(session).named_parameters())
    assert all(torch.equal(value, after[name]) and after[name].grad is None for name, value in untouched.items())
    batch = micro_batches(prepared.examples["train"][:8], prepared.plan, 1)
    session.forward_backward(batch, trial.objective(prepared))
    assert {name for name, p in after.items() if p.grad is not None} <= set(free)
    assert any(float(p.grad.norm()) > 0 for p in after.values() if p.grad is not None)


@every_kind_on_every_head
def test_step_zero_equals_the_base(kind: str, head: str, attempt: Any) -> None:
    if kind in STARTS_ELSEWHERE:
        pytest.skip("starts elsewhere")
    prepared = attempt(head, adaptation=kind)
    plain = session_of(prepared, base(prepared).network)
    assert trial.apart(said(prepared, plain), said(prepared, trial.opened(prepared))) <= 1e-6


@every_kind_on_every_head
def test_saved_reloaded_and_merged_it_says_the_same(kind: str, head: str, attempt: Any, tmp_path: Path) -> None:
    prepared = attempt(head, adaptation=kind)
    session = trial.opened(prepared)
    untrained = said(prepared, session)
    trial.advance(prepared, session, 3)
    tuned = said(prepared, session)
    assert trial.apart(untrained, tuned) > SLOW.get(kind, 1e-4), "three steps must show"
    adaptation(prepared).save(trial.network(session), prepared.tokenizer, tmp_path / "model")
    if adaptation(prepared).adapter:
        fresh = base(prepared)
    else:
        model = prepared.recipe.model.model_copy(update={"name": str(tmp_path / "model")})
        fresh = base(replace(prepared, base=locate(model)))
        assert not fresh.new
    reloaded = adaptation(prepared).reload(fresh.network, tmp_path / "model")
    assert trial.apart(tuned, said(prepared, session_of(prepared, reloaded))) <= 1e-6
    if adaptation(prepared).adapter:
        held, trained = {n for n, p in reloaded.named_parameters() if p.requires_grad}, set(trial.trained(session))
        assert held < trained if kind in ENCODED else held == trained
    if not adaptation(prepared).merges:
        with pytest.raises(ModelError) as caught:
            adaptation(prepared).merge(trial.network(session))
        assert caught.value.problems[0].code == "merge-impossible"
        return
    merged = adaptation(prepared).merge(trial.network(session))
    assert trial.apart(tuned, said(prepared, session_of(prepared, merged))) <= 1e-5
    own = {OUTPUT} if untied(kind, head) else set()
    assert {n for n, _ in merged.named_parameters()} == own | {n for n, _ in base(prepared).network.named_parameters()}


@every_kind_on_every_head
def test_micro_batches_do_not_change_the_gradient(kind: str, head: str, attempt: Any) -> None:
    prepared = attempt(head, adaptation=kind)
    examples = prepared.examples["train"][:8]
    found = []
    for batches in ([collate(examples)], [collate([example]) for example in examples]):
        session = trial.opened(prepared)
        loss = session.forward_backward(batches, trial.objective(prepared))["loss"]
        grad = trial.gradients(session) / sum(float(batch.weight_M.sum()) for batch in batches)
        found.append((loss, grad))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert trial.apart(found[0][1], found[1][1]) <= 1e-5


@every_kind_on_every_head
def test_resuming_gives_the_same_bytes(kind: str, head: str, attempt: Any, tmp_path: Path) -> None:
    prepared = attempt(head, dropout=True, adaptation=kind)
    whole = trial.opened(prepared)
    straight, _ = trial.advance(prepared, whole, 6)
    first = trial.opened(prepared)
    half, at = trial.advance(prepared, first, 3)
    first.save(tmp_path)
    del first
    second = trial.opened(prepared)
    second.restore(tmp_path)
    rest, _ = trial.advance(prepared, second, 3, at)
    assert [*half, *rest] == straight and len(straight) == 6
    ends = trial.trained(second)
    assert all(torch.equal(value, ends[name]) for name, value in trial.trained(whole).items())


@every_kind_on_every_head
def test_speed_passes_do_not_change_the_result(kind: str, head: str, attempt: Any) -> None:
    ends = []
    for mode in ("off", "auto"):
        twice = {"max_steps": 24}  # rows are seen more than once, so that keeping something of them pays
        prepared = attempt(head, adaptation=kind, accel=mode, optimizer=trial.CALM, train=twice)
        prepared = build(prepared).prepared
        session = trial.opened(prepared)
        steps, _ = trial.advance(prepared, session, 6)
        ends.append(([step["loss"] for step in steps], trial.trained(session), prepared.plan))
    (slow, slow_weights, plain), (fast, fast_weights, plan) = ends
    assert not any(d.applied for d in plain.decisions) and any(d.applied for d in plan.decisions)
    assert slow == pytest.approx(fast, rel=1e-5)
    flat = [torch.cat([value.flatten() for value in weights.values()]) for weights in (slow_weights, fast_weights)]
    assert trial.apart(*flat) <= 5e-5  # six steps carry the first one's 1e-5 on
