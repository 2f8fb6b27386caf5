"""Dropout and NEFTune: where they act, how strongly, and where they have no place."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import trial
from onsa.models.batch import collate
from onsa.regularisers.dropout import PART, Dropout
from onsa.spec.errors import RecipeError


def refused(code: str, prepared: Any) -> None:
    with pytest.raises(RecipeError) as caught:
        trial.opened(prepared)
    assert [problem.code for problem in caught.value.problems] == [code]


ENDS = {"rows": ("attention.output.dense", "output.dense"), "tokens": ("self_attn.o_proj", "mlp.down_proj")}


@pytest.mark.parametrize("head", ["rows", "tokens"])
@pytest.mark.parametrize("adaptation", ["full", "lora", "bottleneck"])
def test_dropout_sits_behind_attention_and_feed_forward_part(head: str, adaptation: str, attempt: Any) -> None:
    prepared = attempt(head, regulariser=["dropout"], adaptation=adaptation)
    hooked = [
        name
        for name, module in trial.network(trial.opened(prepared)).named_modules()
        if PART in dict(module.named_children())
    ]
    assert len(hooked) == 4 and sum(name.endswith(ENDS[head]) for name in hooked) == 4


def test_dropout_drops_its_share_and_scales_the_rest(attempt: Any) -> None:
    session = trial.opened(attempt("tokens", regulariser=[{"kind": "dropout", "rate": 0.25}], adaptation="full"))
    end = trial.network(session).get_submodule("model.layers.0.mlp.down_proj")
    given = torch.randn(400, end.in_features)
    whole = end.eval()(given)
    found = end.train()(given)
    kept = found != 0
    assert float(kept.float().mean()) == pytest.approx(0.75, abs=0.02)
    torch.testing.assert_close(found[kept], whole[kept] / 0.75)


def test_dropout_is_refused_where_it_is_or_would_never_act(attempt: Any) -> None:
    refused("dropout-there", attempt("rows", dropout=True, regulariser=["dropout"], adaptation="full"))
    refused("regulariser-asleep", attempt("rows", regulariser=["dropout"], adaptation="head"))
    refused("regulariser-asleep", attempt("rows", regulariser=["neftune"], adaptation="head"))


def test_an_adapters_own_dropout_is_another_thing(attempt: Any) -> None:
    for kind in ("lora", "bottleneck"):
        session = trial.opened(attempt("tokens", regulariser=["dropout"], adaptation={"kind": kind, "dropout": 0.1}))
        modules = trial.network(session).modules()
        assert sum(PART in dict(module.named_children()) for module in modules) == 4, "both are there"


def test_a_network_without_blocks_has_no_place_for_dropout() -> None:
    with pytest.raises(RecipeError) as caught:
        Dropout().attach(torch.nn.Linear(2, 2))
    assert caught.value.problems[0].code == "dropout-without-blocks"


@pytest.mark.parametrize("prompt", ["prompt", "prefix", "p-tuning"])
def test_neftune_is_refused_beside_a_soft_prompt(prompt: str, attempt: Any) -> None:
    refused("neftune-soft-prompt", attempt("tokens", regulariser=["neftune"], adaptation=prompt))


@pytest.mark.parametrize(("head", "layout"), [("rows", "padded"), ("tokens", "padded"), ("tokens", "packed")])
def test_neftunes_noise_is_uniform_and_scaled_by_the_rows_own_length(head: str, layout: str, attempt: Any) -> None:
    alpha = 5.0
    prepared = attempt(head, regulariser=[{"kind": "neftune", "alpha": alpha}], adaptation="full")
    session: Any = trial.opened(prepared)
    network = trial.network(session)
    examples = sorted(prepared.examples["train"], key=lambda example: len(example.token_T))
    chosen = [examples[0], examples[-1]]
    batch = collate(chosen)
    seen: list[torch.Tensor] = []
    table = network.get_input_embeddings()
    table.register_forward_hook(
        lambda module, given, result: seen.append(result - torch.nn.functional.embedding(given[0], table.weight))
    )
    policy = replace(session.models.policy, layout=layout)
    ask = policy.classes if head == "rows" else policy.logprobs
    session.work.adaptation.train_mode(network)
    for _ in range(30):
        ask(batch)
    noise = torch.stack(seen).detach()
    width, start = noise.shape[-1], 0
    for row, example in enumerate(chosen):
        length = len(example.token_T)
        part = noise[:, row, :length] if layout == "padded" else noise[:, 0, start : start + length]
        start += length
        most = alpha / (length * width) ** 0.5
        assert float(part.abs().max()) == pytest.approx(most, rel=0.01)
        assert float(part.abs().max()) <= most + 1e-6
        assert float(part.std()) == pytest.approx(most / 3**0.5, rel=0.03) and abs(float(part.mean())) < 0.03 * most


def test_a_base_whose_dropout_is_a_number_is_known_too(tmp_path: Path, tiny_llama: Path) -> None:
    from transformers import AutoModelForCausalLM, OPTConfig

    config = OPTConfig(
        vocab_size=400, hidden_size=16, num_hidden_layers=2, ffn_dim=32, num_attention_heads=2, word_embed_proj_dim=16
    )
    network = AutoModelForCausalLM.from_config(config)
    assert json.loads(config.to_json_string())["dropout"] == 0.1
    with pytest.raises(RecipeError) as caught:
        Dropout().attach(network)
    assert caught.value.problems[0].code == "dropout-there"
