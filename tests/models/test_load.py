"""Loading: the head a task gets, whatever the base had, and bases that cannot do what is asked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertForMaskedLM, BertForSequenceClassification, LlamaForCausalLM

from onsa.models.heads import Head
from onsa.models.load import load, load_tokenizer
from onsa.spec.errors import ModelError
from onsa.spec.sections import Model

SINGLE = "single_label_classification"


def rows(folder: Path, *labels: str, seed: int = 1) -> tuple[torch.Tensor, frozenset[str]]:
    loaded = load(folder, Model(name=str(folder)), Head.ROWS, labels, SINGLE, seed)
    return loaded.network.get_submodule("classifier").weight.detach().clone(), loaded.new


@pytest.fixture
def classifier(tiny_bert: Path, tmp_path: Path) -> Path:
    """A classifier of good and bad, with the tokenizer of the tiny BERT."""
    network = BertForSequenceClassification.from_pretrained(tiny_bert, num_labels=2)
    network.config.id2label = {0: "bad", 1: "good"}
    network.config.label2id = {"bad": 0, "good": 1}
    network.save_pretrained(tmp_path / "classifier")
    load_tokenizer(tiny_bert, Model(name="")).save_pretrained(tmp_path / "classifier")
    return tmp_path / "classifier"


def test_a_head_for_the_same_labels_is_kept(classifier: Path) -> None:
    first, new = rows(classifier, "bad", "good", seed=1)
    again, _ = rows(classifier, "bad", "good", seed=2)
    assert torch.equal(first, again) and not new


@pytest.mark.parametrize("labels", [("x", "y"), ("bad", "good", "ugly")])
def test_a_head_for_other_labels_is_replaced(classifier: Path, labels: tuple[str, ...]) -> None:
    kept, _ = rows(classifier, "bad", "good")
    first, new = rows(classifier, *labels, seed=1)
    other, _ = rows(classifier, *labels, seed=2)
    same, _ = rows(classifier, *labels, seed=1)
    assert first.shape == (len(labels), kept.shape[1]) and torch.equal(first, same)
    assert not torch.equal(first, other) and not torch.equal(first[:2], kept)
    assert new >= {"classifier.weight", "classifier.bias"}


def test_a_masked_model_does_not_chat(tiny_bert: Path, tmp_path: Path) -> None:
    BertForMaskedLM.from_pretrained(tiny_bert).save_pretrained(tmp_path)
    load_tokenizer(tiny_bert, Model(name="")).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="BertForMaskedLM: it does not predict tokens"):
        load(tmp_path, Model(name="x"), Head.TOKENS, (), None, 1)


def test_a_row_head_on_a_decoder_does_not_look_at_padding(tiny_llama: Path, tmp_path: Path) -> None:
    network = LlamaForCausalLM.from_pretrained(tiny_llama)
    network.config.pad_token_id = 5  # not what the tokenizer pads with
    network.save_pretrained(tmp_path)
    load_tokenizer(tiny_llama, Model(name="")).save_pretrained(tmp_path)
    loaded = load(tmp_path, Model(name="x"), Head.ROWS, ("a", "b"), SINGLE, 1)
    ids = loaded.tokenizer("is there rain here")["input_ids"]
    padded = torch.tensor([[*ids, loaded.tokenizer.pad_token_id, loaded.tokenizer.pad_token_id]])
    with torch.no_grad():
        alone = loaded.network(input_ids=torch.tensor([ids])).logits
        beside = loaded.network(
            input_ids=padded, attention_mask=(padded != loaded.tokenizer.pad_token_id).long()
        ).logits
    torch.testing.assert_close(alone, beside)
