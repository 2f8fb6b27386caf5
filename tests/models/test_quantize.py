"""Quantised bases: bitsandbytes' own numbers, adapters that train beside them, and the same again once reloaded."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file

import tiny
import trial
from onsa.adaptations.base import Adaptation
from onsa.models import quantize
from onsa.models.blocks import blocks
from onsa.models.load import hold_in, load
from onsa.programs.adapters import adapters
from onsa.programs.forecast import build, forecast
from onsa.programs.merge import Way, merge
from onsa.programs.prepare import Prepared, prepare
from onsa.serve.adapters import Apart, Question, open_adapters
from onsa.serve.predictor import MODEL, load_run
from onsa.spec import registry
from onsa.spec.errors import ModelError, RecipeError, StoreError
from onsa.spec.recipe import parse_recipe
from several import tuned

functional = pytest.importorskip("bitsandbytes.functional")
WIDTH = 64  # values that share a scale
HEADS = ["rows", "tokens"]
on_every_head = pytest.mark.parametrize("head", HEADS)
in_every_scheme = pytest.mark.parametrize("scheme", ["nf4", "int8"])
ADAPTERS = [
    kind for kind in registry.kinds("adaptation") if cast(type[Adaptation], registry.load("adaptation", kind)).adapter
]
Quantised = Callable[..., Prepared]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, tiny_llama: Path) -> dict[str, tuple[Path, Path]]:
    """A base of whole blocks of values and its data, by head."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("wide")
    data = {"rows": tiny.write_csv(folder / "topics.csv"), "tokens": tiny.write_chat(folder / "chat.jsonl")}
    found = {}
    for head, narrow, builder in (("rows", tiny_bert, AutoModel), ("tokens", tiny_llama, AutoModelForCausalLM)):
        shutil.copytree(narrow, folder / head)
        config = AutoConfig.from_pretrained(narrow)
        config.update({"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "head_dim": 16})
        torch.manual_seed(1)
        builder.from_config(config).save_pretrained(folder / head)
        found[head] = (folder / head, data[head])
    return found


@pytest.fixture(scope="module")
def quantised(bases: dict[str, tuple[Path, Path]]) -> Quantised:
    def ready(head: str, scheme: str | None, **sections: Any) -> Prepared:
        folder, data = bases[head]
        return started(folder, scheme, data, **{"adaptation": "lora", **sections})

    return ready


def started(folder: Path, scheme: str | None, data: Path, **sections: Any) -> Prepared:
    """As :func:`trial.ready`, from a quantised base."""
    train = {**trial.TRAIN, **sections.pop("train", {})}
    model = {"name": str(folder), "quantize": scheme}
    return prepare(
        parse_recipe({"model": model, "data": str(data), "engine": trial.ENGINE, "train": train, **sections})
    )


def said(prepared: Prepared, session: Any) -> torch.Tensor:
    return trial.outputs(session, prepared.task.head, prepared.examples["validation"])


def fresh(prepared: Prepared) -> Any:
    """The base before it is adapted."""
    task, recipe = prepared.task, prepared.recipe
    return load(prepared.base.folder, recipe.model, task.head, task.outputs, task.hf_problem, recipe.seed).network


def matrices(network: torch.nn.Module) -> dict[str, Any]:
    return {name: p for name, p in network.named_parameters() if quantize.is_quantised(p)}


@on_every_head
@in_every_scheme
def test_the_blocks_are_quantised_and_nothing_else(head: str, scheme: str, quantised: Quantised) -> None:
    prepared = quantised(head, scheme)
    network = fresh(prepared)
    inside = tuple(f"{name}." for name, _ in blocks(network))
    products = {f"{name}.weight" for name, m in network.named_modules() if isinstance(m, torch.nn.Linear)}
    found = set(matrices(network))
    assert found == {name for name in products if name.startswith(inside)} and products - found
    others = [p for name, p in network.named_parameters() if name not in found]
    assert all(p.dtype == torch.float32 for p in others)


@on_every_head
def test_nf4_is_that_of_bitsandbytes(head: str, quantised: Quantised) -> None:
    prepared = quantised(head, "nf4")
    plain = load_file(prepared.base.folder / "model.safetensors")
    checked = 0
    for name, parameter in matrices(fresh(prepared)).items():
        weight = next(value for stored, value in plain.items() if name.endswith(stored))
        packed, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True, blocksize=WIDTH)
        wanted = functional.dequantize_4bit(packed, state)
        found = functional.dequantize_4bit(parameter.data, parameter.quant_state)
        assert torch.equal(found, wanted) and 0 < trial.apart(weight, found) < 0.15
        assert quantize.count(parameter) == weight.numel()
        assert quantize.held_bytes(parameter) >= weight.numel() // 2 + weight.numel() // WIDTH
        checked += 1
    assert checked == 2 * (6 if head == "rows" else 7)


@on_every_head
@in_every_scheme
def test_only_adapters_train_and_they_move(head: str, scheme: str, quantised: Quantised) -> None:
    prepared = quantised(head, scheme)
    session = trial.opened(prepared)
    held = {name: p.detach().clone() for name, p in matrices(trial.network(session)).items()}
    before, start = said(prepared, session), trial.trained(session)
    assert start and all("lora" in name or "modules_to_save" in name for name in start)
    trial.advance(prepared, session, 3)
    moved = [name for name, value in trial.trained(session).items() if not torch.equal(value, start[name])]
    assert moved == list(start), "the gradient reaches every adapter"
    assert trial.apart(before, said(prepared, session)) > 1e-4
    assert all(torch.equal(value, held[name]) for name, value in matrices(trial.network(session)).items())


@on_every_head
@in_every_scheme
def test_saved_and_reloaded_it_says_the_same(head: str, scheme: str, quantised: Quantised, tmp_path: Path) -> None:
    prepared = quantised(head, scheme, accel="off")  # what answers computes plainly
    session = trial.opened(prepared)
    trial.advance(prepared, session, 3)
    prepared.adaptation.save(trial.network(session), prepared.tokenizer, tmp_path / MODEL)
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in (tmp_path / MODEL).iterdir()}
    tuned = said(prepared, session)
    answering = load_run(tmp_path, prepared.recipe)
    assert matrices(answering.policy.network)
    session.models = replace(session.models, policy=answering.policy)
    assert torch.equal(tuned, said(prepared, session))


@on_every_head
@in_every_scheme
def test_resuming_gives_the_same_bytes_also_past_an_evaluation(
    head: str, scheme: str, quantised: Quantised, tmp_path: Path
) -> None:
    prepared = quantised(head, scheme)
    whole = trial.opened(prepared)
    trial.advance(prepared, whole, 6)
    first = trial.opened(prepared)
    _, at = trial.advance(prepared, first, 3)
    first.evaluate(prepared.examples["validation"], prepared.task)
    first.save(tmp_path)
    second = trial.opened(prepared)
    second.restore(tmp_path)
    second.evaluate(prepared.examples["validation"], prepared.task)
    trial.advance(prepared, second, 3, at)
    ends = trial.trained(second)
    assert all(torch.equal(value, ends[name]) for name, value in trial.trained(whole).items())


@on_every_head
@in_every_scheme
@pytest.mark.parametrize("kind", ADAPTERS)
def test_every_adapter_trains_beside_it(
    kind: str, scheme: str, head: str, quantised: Quantised, tmp_path: Path
) -> None:
    prepared = quantised(head, scheme, adaptation=kind)
    session = trial.opened(prepared)
    start = trial.trained(session)
    trial.advance(prepared, session, 2)
    assert any(not torch.equal(value, start[name]) for name, value in trial.trained(session).items())
    tuned = said(prepared, session)
    prepared.adaptation.save(trial.network(session), prepared.tokenizer, tmp_path / MODEL)
    session.models = replace(session.models, policy=load_run(tmp_path, prepared.recipe).policy)
    # Passes change how sums are rounded; where inputs are then rounded to eight bits, some fall to the other side.
    assert trial.apart(tuned, said(prepared, session)) <= (1e-4 if scheme == "int8" else 1e-6)


@in_every_scheme
def test_a_head_trains_on_a_quantised_base(scheme: str, quantised: Quantised, tmp_path: Path) -> None:
    prepared = quantised("rows", scheme, adaptation="head")
    session = trial.opened(prepared)
    before = said(prepared, session)
    trial.advance(prepared, session, 3)
    tuned = said(prepared, session)
    assert trial.apart(before, tuned) > 1e-4
    prepared.adaptation.save(trial.network(session), prepared.tokenizer, tmp_path / MODEL)
    answering = load_run(tmp_path, prepared.recipe)
    session.models = replace(session.models, policy=answering.policy)
    assert trial.apart(tuned, said(prepared, session)) <= 1e-6


@in_every_scheme
def test_bf16_computes_in_bf16(scheme: str, quantised: Quantised) -> None:
    prepared = quantised("tokens", scheme, train={"precision": "bf16"})
    session = trial.opened(prepared)
    (losses, _) = trial.advance(prepared, session, 3)
    assert all(step["loss"] > 0 for step in losses)
    computed = {m.compute_dtype for m in trial.network(session).modules() if hasattr(m, "compute_dtype")}
    assert computed == ({torch.bfloat16} if scheme == "nf4" else set())


@pytest.mark.parametrize("kind", ["full", "last-layers", "gradual-unfreeze", "bitfit", "layer-norm"])
def test_what_would_train_the_base_is_refused(kind: str, quantised: Quantised) -> None:
    with pytest.raises(RecipeError) as caught:
        quantised("rows", "nf4", adaptation=kind)
    (problem,) = caught.value.problems
    assert (problem.code, problem.key) == ("quantize-trains-base", "model.quantize") and kind in problem.what


def test_matrices_cannot_be_unfrozen_but_norms_can(quantised: Quantised) -> None:
    with pytest.raises(RecipeError) as caught:
        build(quantised("tokens", "nf4", adaptation={"kind": "lora", "unfreeze": ["*.layers.0.mlp.*"]}))
    assert caught.value.problems[0].code == "unfreeze-quantised"
    with pytest.raises(RecipeError) as caught:  # the bias is no matrix, but PEFT would train its module whole
        build(quantised("rows", "nf4", adaptation={"kind": "lora", "unfreeze": ["*.query.bias"]}))
    assert caught.value.problems[0].code == "unfreeze-quantised"
    session = trial.opened(quantised("tokens", "nf4", adaptation={"kind": "lora", "unfreeze": ["*layernorm*"]}))
    assert any("layernorm" in name for name in trial.trained(session))


def test_an_adapter_is_the_usual_choice(bases: dict[str, tuple[Path, Path]]) -> None:
    folder, data = bases["rows"]
    kinds = [started(folder, scheme, data).adaptation.kind for scheme in (None, "nf4")]
    assert kinds == ["full", "lora"]


@in_every_scheme
def test_the_forecast_counts_what_is_held(scheme: str, quantised: Quantised) -> None:
    plain, small = (quantised("tokens", s) for s in (None, scheme))
    before, after = (forecast(build(p)) for p in (plain, small))
    assert (before.parameters, before.trainable) == (after.parameters, after.trainable)
    values = sum(quantize.count(p) for p in matrices(build(small).network).values())
    share = {"nf4": 0.52, "int8": 1.0}[scheme]
    # The tables of a tiny matrix' scales weigh more than those of a real one.
    assert before.weights - after.weights == pytest.approx(values * (4 - share), rel=0.1)


def test_a_real_matrix_takes_less_than_a_third_of_bf16() -> None:
    """One as wide as SmolLM2's, with its scales and their tables."""
    from bitsandbytes.nn import Params4bit

    weight = torch.randn(576, 576)
    held: Any = Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=True, blocksize=WIDTH)
    assert quantize.held_bytes(held.to("cpu")) <= 0.30 * 2 * weight.numel()


@in_every_scheme
@pytest.mark.parametrize("init", ["olora", "pissa", "pissa_niter_4"])
def test_beginnings_that_change_the_base_are_refused(init: str, scheme: str, quantised: Quantised) -> None:
    with pytest.raises(RecipeError) as caught:
        build(quantised("tokens", scheme, adaptation={"kind": "lora", "init": init}))
    (problem,) = caught.value.problems
    assert (problem.code, problem.key) == ("init-quantised", "adaptation.init") and init in problem.what


def test_int8_keeps_its_scales_where_it_is_held_again(quantised: Quantised) -> None:
    """After a product they lie in the module, where a second move would miss them."""
    network = fresh(quantised("tokens", "int8"))
    token_RT = torch.arange(1, 9)[None]
    before = network(input_ids=token_RT).logits
    hold_in(network, "fp32", torch.device("cpu"))
    assert torch.equal(before, network(input_ids=token_RT).logits)
    for name in matrices(network):
        quantize.move(network.get_submodule(name.removesuffix(".weight")), "weight", torch.device("meta"))
    assert {p.SCB.device.type for p in matrices(network).values()} == {"meta"}


def test_the_scheme_is_part_of_a_runs_identity(quantised: Quantised) -> None:
    assert len({quantised("tokens", scheme).identity for scheme in (None, "nf4", "int8")}) == 3


def test_nothing_about_kernels_reaches_the_user() -> None:
    script = "from onsa.spec.extras import require; require('bitsandbytes', 'low-bit', 'model.quantize')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""


@on_every_head
def test_loftq_begins_nearer_to_the_base_as_it_was(head: str, quantised: Quantised, bases: Any, tmp_path: Path) -> None:
    """The product of B and A takes up of the lost part what an exact SVD of that rank would."""
    prepared = quantised(head, "nf4", adaptation={"kind": "lora", "init": "loftq", "rank": 8, "alpha": 24})
    network = build(prepared).network
    stored = load_file(bases[head][0] / "model.safetensors")
    looked = 0
    for name, module in network.named_modules():
        if type(module).__name__ != "Linear4bit" or not hasattr(module, "lora_A"):
            continue
        looked += 1
        (key,) = [key for key in stored if f"{name}.weight".endswith(f".{key}")]
        held = functional.dequantize_4bit(module.base_layer.weight.data, module.base_layer.weight.quant_state).float()
        lost = stored[key].float() - held
        update = (
            module.scaling["default"] * (module.lora_B["default"].weight @ module.lora_A["default"].weight).detach()
        )
        size = torch.linalg.svdvals(lost)
        assert module.scaling["default"] == 3.0
        assert float((lost - update).norm()) == pytest.approx(float(size[8:].norm()), rel=1e-3)
        assert float((lost - update).norm()) < 0.9 * float(lost.norm())
    assert looked == 2 * (6 if head == "rows" else 7)
    session = trial.opened(prepared)
    trial.advance(prepared, session, 2)
    tuned = trial.outputs(session, prepared.task.head, prepared.examples["validation"])
    adaptation = cast(Adaptation, prepared.recipe.adaptation)
    adaptation.save(trial.network(session), prepared.tokenizer, tmp_path)
    fresh = load(
        prepared.base.folder,
        prepared.recipe.model,
        prepared.task.head,
        prepared.task.outputs,
        prepared.task.hf_problem,
        7,
    )
    again = trial.opened(prepared)
    again.models = replace(
        again.models, policy=replace(again.models.policy, network=adaptation.reload(fresh.network, tmp_path))
    )
    assert trial.apart(tuned, trial.outputs(again, prepared.task.head, prepared.examples["validation"])) <= 1e-5
    with pytest.raises(ModelError) as caught:
        adaptation.merge(trial.network(session))
    assert caught.value.problems[0].code == "loftq-fold"


def test_loftq_needs_a_rounded_base(quantised: Quantised) -> None:
    for scheme in (None, "int8"):
        with pytest.raises(RecipeError) as caught:
            build(quantised("tokens", scheme, adaptation={"kind": "lora", "init": "loftq"}))
        assert caught.value.problems[0].code == "loftq-unquantised"


def test_loftq_is_not_added_up_and_neither_are_unlike_bases(bases: Any) -> None:
    folder, data = bases["tokens"]
    nf4 = {"name": str(folder), "quantize": "nf4"}
    loftq = tuned(folder, data, 1, model=nf4, adaptation={"kind": "lora", "rank": 4, "init": "loftq"})
    plain, bare = tuned(folder, data, 2, model=nf4), tuned(folder, data, 3)
    for other, code, said in ((loftq, "adapter-not-plain", "init: loftq"), (bare, "adapters-quantised-unlike", "nf4")):
        for refs in ([f"{plain.id}+{other.id}"], None):
            with pytest.raises(StoreError) as caught:
                adapters(refs) if refs else merge([plain.id, other.id], Way("cat"))
            (problem,) = caught.value.problems
            assert problem.code == code and said in problem.what
        answering = open_adapters(list(adapters([plain.id, other.id]).values()))
        assert isinstance(answering, Apart), "one after the other"
        (answer,) = answering.answer([Question(other.id, 1, "rain")])
        assert answer == load_run(other.folder, parse_recipe(other.recipe)).predict(["rain"])[0]
