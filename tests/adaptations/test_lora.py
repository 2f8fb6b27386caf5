"""LoRA's targets: whole names of modules that PEFT can adapt, and nothing else."""

from __future__ import annotations

import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM

import tiny
import trial
from onsa.adaptations.lora import Lora
from onsa.models.heads import Head
from onsa.models.load import load
from onsa.models.policy import Models, Policy
from onsa.spec.errors import RecipeError
from onsa.spec.recipe import parse_recipe


@pytest.fixture
def llama(tiny_llama: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_llama, tie_word_embeddings=False)


@pytest.mark.parametrize("target", ["proj", "mlp", "layers.0", "rotary_emb", ""])
def test_what_peft_cannot_adapt_is_said_in_our_words(target: str, llama: Any) -> None:
    with pytest.raises(RecipeError) as caught:
        Lora(targets=(target,)).apply(llama, Head.TOKENS, frozenset(), 6)
    (problem,) = caught.value.problems
    assert problem.code == "target-unmatched" and {"q_proj", "embed_tokens"} <= set(
        problem.values["choices"].split(", ")
    )


@pytest.mark.parametrize("target", ["q_proj", "mlp.up_proj", "model.layers.0.self_attn.v_proj", "embed_tokens"])
def test_whole_names_at_the_end_of_a_path_are_adapted(target: str, llama: Any) -> None:
    adapted = Lora(targets=target).apply(llama, Head.TOKENS, frozenset(), 6)
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert trained and all(f"{target}.lora_" in name for name in trained)


def applied(network: Any, **fields: Any) -> Any:
    torch.manual_seed(4)
    return Lora(**fields).apply(network, Head.TOKENS, frozenset(), 6)


def layers(network: Any) -> dict[str, tuple[int, float]]:
    """The adapted modules with their rank and scale."""
    return {
        name.partition("model.model.model.")[2]: (module.r["default"], module.scaling["default"])
        for name, module in network.named_modules()
        if isinstance(module, LoraLayer)
    }


def test_patterns_choose_modules_ranks_and_scales(llama: Any) -> None:
    found = layers(
        applied(
            llama,
            targets=r"model\.layers\.\d+\.self_attn\..*",
            exclude=(r".*\.0\..*", "o_proj"),
            rank=4,
            alpha=8,
            rank_pattern={"q_proj": 2},
            alpha_pattern={r"layers\.1\.self_attn\.[qk]_proj": 16},
        )
    )
    assert found == {
        "layers.1.self_attn.q_proj": (2, 8.0),
        "layers.1.self_attn.k_proj": (4, 4.0),
        "layers.1.self_attn.v_proj": (4, 2.0),
    }


def test_all_linear_without_some(llama: Any) -> None:
    every, some = layers(applied(deepcopy(llama))), layers(applied(llama, exclude="down_proj"))
    assert set(some) == {name for name in every if "down_proj" not in name} and len(every) == 14


def test_rslora_divides_by_the_root_of_the_rank(llama: Any) -> None:
    assert set(layers(applied(llama, rank=4, alpha=8, rslora=True)).values()) == {(4, 4.0)}


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"exclude": ("nonsense",)}, "adaptation.exclude"),
        ({"targets": r".*\.nonsense\..*"}, "adaptation.targets"),
        ({"rank_pattern": {"nonsense": 2}}, "adaptation.rank_pattern"),
        ({"targets": ("q_proj",), "alpha_pattern": {"k_proj": 2.0}}, "adaptation.alpha_pattern"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused(fields: dict[str, Any], key: str, llama: Any) -> None:
    with pytest.raises(RecipeError) as caught:
        applied(llama, **fields)
    assert [(problem.code, problem.key) for problem in caught.value.problems] == [("target-unmatched", key)]


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head", ".*(embed_tokens|q_proj)"])
def test_a_weight_of_two_modules_is_not_adapted(target: str, tiny_llama: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        applied(AutoModelForCausalLM.from_pretrained(tiny_llama), targets=target)
    (problem,) = caught.value.problems
    assert problem.code == "target-tied" and problem.values["value"] in ("model.embed_tokens", "lm_head")


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"init": "eva"}, "init-needs-data"),
        ({"init": "pisa"}, "value-unknown"),
        ({"init": "pissa_niter_x"}, "value-unknown"),
        ({"init": "pissa", "dora": True}, "dora-init"),
        ({"targets": "(q_proj"}, "expression-malformed"),
        ({"rank_pattern": {"[": 2}}, "expression-malformed"),
        ({"rank_pattern": {"q_proj": 0}}, "value-too-small"),
    ],
)
def test_settings_that_cannot_be_are_refused(given: dict[str, Any], code: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe({"model": "m", "data": "d", "adaptation": {"kind": "lora", **given}})
    (problem,) = caught.value.problems
    assert problem.code == code
    if given.get("init") == "pisa":
        assert problem.values["near"] == "pissa"


BEGINNINGS: dict[str, dict[str, Any]] = {
    "gaussian": {"init": "gaussian"},
    "orthogonal": {"init": "orthogonal"},
    "olora": {"init": "olora"},
    "pissa": {"init": "pissa"},
    "pissa-fast": {"init": "pissa_niter_4"},
    "pissa-patterns": {
        "init": "pissa",
        "rslora": True,
        "rank_pattern": {"query|q_proj": 2},
        "alpha_pattern": {"key|k_proj": 3},
    },
    "dora": {"dora": True},
}


@pytest.mark.parametrize("name", list(BEGINNINGS))
@pytest.mark.parametrize("head", ["rows", "tokens"])
def test_each_beginning_is_saved_for_the_base_as_it_was(
    name: str, head: str, tiny_bert: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    """Saved as PEFT's files after three steps, and read onto a fresh base: the same logits. Step zero is the base's."""
    base = trial.still(tiny_bert if head == "rows" else tiny_llama, tmp_path / "base")
    data = tiny.write_csv(tmp_path / "d.csv") if head == "rows" else tiny.write_chat(tmp_path / "d.jsonl")
    prepared = trial.ready(base, data, adaptation={"kind": "lora", "rank": 4, **BEGINNINGS[name]})
    task, recipe, kind = prepared.task, prepared.recipe, prepared.adaptation
    rows = prepared.examples["validation"]

    def fresh() -> Any:
        return load(base, recipe.model, task.head, task.outputs, task.hf_problem, recipe.seed).network

    def said(network: Any) -> torch.Tensor:
        session = trial.opened(prepared)
        session.models = Models(Policy(network, prepared.tokenizer.pad_token_id, torch.device("cpu")))
        return trial.outputs(session, task.head, rows)

    session = trial.opened(prepared)
    network = trial.network(session)
    assert trial.apart(said(fresh()), said(network)) <= 1e-5
    trial.advance(prepared, session, 3)
    tuned = said(network)
    for folder in (tmp_path / "one", tmp_path / "two"):  # saving changes nothing in the network
        kind.save(network, prepared.tokenizer, folder)
        assert trial.apart(tuned, said(network)) == 0
        assert trial.apart(tuned, said(kind.reload(fresh(), folder))) <= 1e-5
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert trial.apart(tuned, said(PeftModel.from_pretrained(fresh(), folder))) <= 1e-5, "by plain PEFT too"
    reloaded = kind.reload(fresh(), tmp_path / "one")
    assert trial.apart(tuned, said(kind.merge(reloaded))) <= 1e-5
    assert trial.apart(tuned, said(kind.merge(network))) <= 1e-5


def test_a_beginning_that_does_not_fit_is_refused(llama: Any) -> None:
    with pytest.raises(RecipeError) as caught:
        applied(llama, rank=3, init="orthogonal")
    assert [problem.code for problem in caught.value.problems] == ["peft-refuses"]
