"""Patterns of parameter names: what they match, and what is said where they match nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from onsa.models.load import quiet
from onsa.models.names import matching, plain
from onsa.spec.errors import RecipeError

KEY = "adaptation.freeze"


@pytest.fixture
def bert(tiny_bert: Path) -> Any:
    with quiet():
        return AutoModelForSequenceClassification.from_pretrained(tiny_bert)


def names(network: Any, *patterns: str) -> list[str]:
    return sorted(matching(network, patterns, KEY))


def test_a_pattern_is_a_name_a_wildcard_or_a_module(bert: Any) -> None:
    everything = [name for name, _ in bert.named_parameters()]
    assert names(bert, "classifier.bias") == ["classifier.bias"]
    assert names(bert, "classifier") == names(bert, "classifier.*") == ["classifier.bias", "classifier.weight"]
    first = [name for name in everything if ".layer.0." in name]
    assert names(bert, "*.layer.0.*") == names(bert, "bert.encoder.layer.0") == sorted(first) and first
    assert names(bert, "*.layer.?.output.dense.bias") == [f"bert.encoder.layer.{i}.output.dense.bias" for i in (0, 1)]
    assert names(bert, "*") == sorted(everything)
    assert names(bert) == [] and names(bert, "classifier", "classifier.bias") == names(bert, "classifier")


def test_a_module_is_named_by_its_whole_path(bert: Any) -> None:
    for pattern in ("classif", "encoder", "bert.encoder.layer.", "Classifier", ""):
        with pytest.raises(RecipeError):
            names(bert, pattern)


def test_embeddings_are_those_of_the_input_whatever_they_are_called(bert: Any, tiny_llama: Path) -> None:
    assert names(bert, "embeddings") == ["bert.embeddings.word_embeddings.weight"]
    llama = AutoModelForCausalLM.from_pretrained(tiny_llama)
    assert names(llama, "embeddings") == ["model.embed_tokens.weight"]


def test_all_that_match_nothing_are_told_at_once_with_near_names(bert: Any) -> None:
    with pytest.raises(RecipeError) as caught:
        names(bert, "*.layre.0.*", "classifier", "*pooler*.kernel", "word_embeddings")
    problems = caught.value.problems
    assert [(p.code, p.key, p.values["value"]) for p in problems] == [
        ("pattern-unmatched", KEY, value) for value in ("*.layre.0.*", "*pooler*.kernel", "word_embeddings")
    ]
    assert ".layer.0." in problems[0].values["near"]
    assert "bert.pooler.dense.weight" in problems[1].values["near"]
    assert problems[2].values["near"] == "bert.embeddings.word_embeddings.weight", "a part of a name is nearest"


def test_a_wrapped_network_is_named_as_its_base(bert: Any) -> None:
    from peft import LoraConfig, TaskType, get_peft_model

    base = {name for name, _ in bert.named_parameters()}
    with quiet():
        settings = LoraConfig(target_modules="all-linear", task_type=TaskType.SEQ_CLS)
        wrapped = get_peft_model(bert, settings)
    seen = plain(wrapped)
    assert base == {name for name in seen.values() if "lora_" not in name}
    assert names(wrapped, "embeddings") == ["base_model.model.bert.embeddings.word_embeddings.weight"]
    assert {name.rpartition(".")[0].rpartition("classifier")[2] for name in names(wrapped, "classifier.weight")} == {
        ".original_module",
        ".modules_to_save.default",
    }
    inside = [seen[name] for name in names(wrapped, "*.layer.0.*") if "lora_" in name]
    assert inside and all(name.startswith("bert.encoder.layer.0.") for name in inside)
