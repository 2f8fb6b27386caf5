"""Rates by group, as they come out on real networks: by depth, for what is new, for LoRA's B, and in a refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch

import tiny
import trial
from onsa.optim.optimizers.adamw import AdamW
from onsa.optim.optimizers.base import Optimizer
from onsa.programs.check import check
from onsa.programs.forecast import build
from onsa.spec.errors import RecipeError
from onsa.spec.recipe import parse_recipe


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("groups")
    return {"bert": tiny.write_csv(folder / "topics.csv"), "llama": tiny.write_chat(folder / "chat.jsonl")}


@pytest.fixture
def rates(data: dict[str, Path], tiny_bert: Path, tiny_llama: Path) -> Any:
    """The label and the rate of each trainable parameter of a base, by its name."""
    bases = {"bert": tiny_bert, "llama": tiny_llama}

    def found(base: str, adaptation: str, **optimizer: Any) -> dict[str, tuple[str, float]]:
        settings = {"kind": "adamw", "lr": 1e-3, **optimizer}
        prepared = trial.ready(bases[base], data[base], adaptation=adaptation, optimizer=settings)
        built = build(prepared)
        names = {id(p): name for name, p in built.network.named_parameters()}
        groups = cast(Optimizer, prepared.recipe.optimizer).groups(built.network, built.new, by_block=False)
        return {names[id(p)]: (g["label"], round(g["base_lr"], 12)) for g in groups for p in g["params"]}

    return found


def at(found: dict[str, tuple[str, float]], part: str) -> set[tuple[str, float]]:
    return {value for name, value in found.items() if part in name}


def test_layer_decay_falls_toward_the_input(rates: Any) -> None:
    bert = rates("bert", "full", layer_decay=0.5, lr_new=0.01)
    assert at(bert, "embeddings.") == {("embeddings", 1.25e-4)}
    assert at(bert, "layer.0.") == {("block 1", 2.5e-4)} and at(bert, "layer.1.") == {("block 2", 5e-4)}
    assert at(bert, "classifier.") == {("new", 0.01)}
    llama = rates("llama", "full", layer_decay=0.1)
    assert at(llama, "embed_tokens") == {("embeddings", 1e-6)}
    assert at(llama, "layers.0.") == {("block 1", 1e-5)}
    assert at(llama, "layers.1.") == {("block 2", 1e-4)}
    assert at(llama, "model.norm") == {("top", 1e-3)}


@pytest.mark.parametrize("base", ["bert", "llama"])
def test_depth_is_seen_through_peft(base: str, rates: Any) -> None:
    layer = "layer." if base == "bert" else "layers."
    found = rates(base, "lora", layer_decay=0.5)
    assert at(found, f"{layer}0.") == {("block 1", 2.5e-4)} and at(found, f"{layer}1.") == {("block 2", 5e-4)}


@pytest.mark.parametrize("base", ["bert", "llama"])
def test_lora_plus_is_a_multiple_for_b(base: str, rates: Any) -> None:
    found = rates(base, "lora", lora_plus=16.0, lr_new=0.01)
    assert at(found, "lora_A.") == {("base", 1e-3)} and at(found, "lora_B.") == {("base, B", 0.016)}
    assert at(found, "classifier") == ({("new", 0.01)} if base == "bert" else set())
    by_depth = rates(base, "lora", lora_plus=4.0, layer_decay=0.5)
    layer = "layer.0." if base == "bert" else "layers.0."
    assert at(by_depth, layer) == {("block 1", 2.5e-4), ("block 1, B", 1e-3)}


def test_one_rate_is_one_label(rates: Any) -> None:
    assert set(rates("llama", "full").values()) == {("base", 1e-3)}
    assert set(rates("bert", "full", lr_new=0.01).values()) == {("base", 1e-3), ("new", 0.01)}


def test_a_group_for_each_block_where_they_thaw_one_by_one(tiny_llama: Path) -> None:
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(tiny_llama)
    groups = AdamW(lr=1e-3).groups(network, frozenset(), by_block=True)
    assert {group["label"] for group in groups} == {"embeddings", "block 1", "block 2", "top"}
    assert {group["base_lr"] for group in groups} == {1e-3}


def test_lora_plus_without_lora_is_refused_before_anything_trains(data: dict[str, Path], tiny_bert: Path) -> None:
    optimizer = {"kind": "adamw", "lora_plus": 16.0}
    values = {"model": str(tiny_bert), "data": str(data["bert"]), "adaptation": "full", "optimizer": optimizer}
    with pytest.raises(RecipeError) as caught:
        check(parse_recipe(values), timing=False)
    (problem,) = caught.value.problems
    assert (problem.code, problem.key) == ("lora-plus-unfit", "optimizer.lora_plus")


def test_the_rates_of_a_step_are_told_by_label(data: dict[str, Path], tiny_bert: Path) -> None:
    optimizer = {"kind": "adamw", "lr": 1e-3, "lr_new": 1e-2, "layer_decay": 0.5}
    prepared = trial.ready(tiny_bert, data["bert"], adaptation="full", optimizer=optimizer, schedule="constant")
    (first, *_, last), _ = trial.advance(prepared, trial.opened(prepared), 4)
    assert last["rates"] == pytest.approx(
        {"embeddings": 1.25e-4, "block 1": 2.5e-4, "block 2": 5e-4, "top": 1e-3, "new": 1e-2}
    )
    assert set(first["rates"]) == set(last["rates"]) and first["rates"]["new"] < last["rates"]["new"]
    assert torch.isfinite(torch.tensor(last["loss"]))


def held(data: dict[str, Path], base: Path, adaptation: Any, kind: str = "adamw", **settings: Any) -> dict[str, Any]:
    """The group of each trainable parameter, by its name."""
    prepared = trial.ready(base, data["bert"], adaptation=adaptation, optimizer={"kind": kind, "lr": 1e-3, **settings})
    built = build(prepared)
    names = {id(p): name for name, p in built.network.named_parameters()}
    groups = cast(Optimizer, prepared.recipe.optimizer).groups(built.network, built.new, by_block=False)
    return {names[id(p)]: group for group in groups for p in group["params"]}


@pytest.mark.parametrize(
    ("adaptation", "vectors"),
    [("ia3", "ia3_l."), ("peft", "lora_E."), ({"kind": "lora", "rank": 1}, "lora_A."), ("prompt", "prompt_encoder.")],
)
def test_what_is_a_vector_does_not_decay_and_is_no_hidden_matrix(
    adaptation: Any, vectors: str, data: dict[str, Path], tiny_bert: Path
) -> None:
    """IA³'s factors stand for nothing at 1, and decay would pull them to 0."""
    found = held(data, tiny_bert, adaptation, "muon", weight_decay=0.1)
    mine = [group for name, group in found.items() if vectors in name]
    assert mine and not any(group["weight_decay"] or group["hidden"] for group in mine)
    heads = {name: group["weight_decay"] for name, group in found.items() if "classifier" in name}
    assert {name.rpartition(".")[2]: decay for name, decay in heads.items()} == {"weight": 0.1, "bias": 0.0}


def test_matrices_of_an_adapter_decay_and_are_hidden(data: dict[str, Path], tiny_bert: Path) -> None:
    found = held(data, tiny_bert, "lora", "muon", weight_decay=0.1)
    assert {(g["weight_decay"], g["hidden"]) for name, g in found.items() if ".layer." in name} == {(0.1, True)}


@pytest.mark.parametrize("kind", ["prompt", "prefix", "p-tuning"])
def test_a_soft_prompt_lies_outside_the_depths(kind: str, data: dict[str, Path], tiny_bert: Path) -> None:
    found = held(data, tiny_bert, kind, layer_decay=0.5, lr_new=0.01)
    soft = {(g["label"], g["lr"]) for name, g in found.items() if name.startswith("prompt_encoder.")}
    assert soft == {("base", 1e-3)}
