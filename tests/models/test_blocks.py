"""Blocks, their outputs, heads and depths, on tiny networks of many architectures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM

from onsa.models.blocks import Outputs, blocks, depths, head_names, outputs, untie, width
from onsa.models.load import quiet

COMMON = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
TEXT = {**COMMON, "vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPED = {**TEXT, "num_key_value_heads": 2}


@dataclass(frozen=True)
class Case:
    """An architecture, and what is to be found in it: lists of two blocks, the first block's outputs, the head.

    top, bottom: parameters, among others, after the last block and before the first one.
    """

    model: str
    config: str
    fields: dict[str, Any]
    lists: tuple[str, ...]
    attentions: tuple[str, ...]
    feed_forward: str
    head: tuple[str, ...]
    top: tuple[str, ...]
    bottom: tuple[str, ...]


DISTIL = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "vocab_size": 60}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 60, "bos_token_id": 1, "eos_token_id": 2}
T5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "vocab_size": 60}
BART = {"d_model": 32, "vocab_size": 60, "pad_token_id": 0, "forced_eos_token_id": None}
BART |= {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in (("layers", 2), ("ffn_dim", 64))}
OPT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 64, "word_embed_proj_dim": 32}
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4}
VIT = {**COMMON, "image_size": 16, "patch_size": 8}
BERT_ENDS = (("attention.output.dense",), "output.dense")
CLASSIFIER = ("classifier.weight", "classifier.bias")
NORM = ("model.norm.weight", "lm_head.weight")
LM = ("lm_head.weight",)
# fmt: off
CASES = [
    Case("BertForSequenceClassification", "BertConfig", TEXT, ("bert.encoder.layer",), *BERT_ENDS, CLASSIFIER,
         ("bert.pooler.dense.weight", *CLASSIFIER), ("bert.embeddings.LayerNorm.weight",)),
    Case("RobertaForSequenceClassification", "RobertaConfig", TEXT, ("roberta.encoder.layer",), *BERT_ENDS,
         tuple(f"classifier.{name}.{leaf}" for name in ("dense", "out_proj") for leaf in ("weight", "bias")),
         ("classifier.dense.weight",), ("roberta.embeddings.position_embeddings.weight",)),
    Case("DistilBertForSequenceClassification", "DistilBertConfig", DISTIL, ("distilbert.transformer.layer",),
         ("attention.out_lin",), "ffn.lin2", ("pre_classifier.weight", "pre_classifier.bias", *CLASSIFIER),
         ("pre_classifier.weight",), ("distilbert.embeddings.word_embeddings.weight",)),
    Case("LlamaForCausalLM", "LlamaConfig", GROUPED, ("model.layers",), ("self_attn.o_proj",), "mlp.down_proj", LM,
         NORM, ("model.embed_tokens.weight",)),
    Case("Phi3ForCausalLM", "Phi3Config", GROUPED, ("model.layers",), ("self_attn.o_proj",), "mlp.down_proj", LM,
         NORM, ("model.embed_tokens.weight",)),
    Case("GPT2LMHeadModel", "GPT2Config", GPT2, ("transformer.h",), ("attn.c_proj",), "mlp.c_proj", (),
         ("transformer.ln_f.weight",), ("transformer.wte.weight", "transformer.wpe.weight")),
    Case("GPTNeoXForCausalLM", "GPTNeoXConfig", TEXT, ("gpt_neox.layers",), ("attention.dense",), "mlp.dense_4h_to_h",
         LM, ("gpt_neox.final_layer_norm.weight",), ("gpt_neox.embed_in.weight",)),
    Case("T5ForConditionalGeneration", "T5Config", T5, ("encoder.block", "decoder.block"),
         ("layer.0.SelfAttention.o",), "layer.1.DenseReluDense.wo", (),
         ("decoder.final_layer_norm.weight",), ("shared.weight",)),
    Case("BartForConditionalGeneration", "BartConfig", BART, ("model.encoder.layers", "model.decoder.layers"),
         ("self_attn.out_proj",), "fc2", (), (), ("model.shared.weight", "model.decoder.layernorm_embedding.weight")),
    Case("OPTForCausalLM", "OPTConfig", {**OPT, "vocab_size": 60}, ("model.decoder.layers",), ("self_attn.out_proj",),
         "fc2", (), ("model.decoder.final_layer_norm.weight",), ("model.decoder.embed_positions.weight",)),
    Case("FalconForCausalLM", "FalconConfig", TEXT, ("transformer.h",), ("self_attention.dense",),
         "mlp.dense_4h_to_h", (), ("transformer.ln_f.weight",), ("transformer.word_embeddings.weight",)),
    Case("MixtralForCausalLM", "MixtralConfig", {**GROUPED, "num_local_experts": 4}, ("model.layers",),
         ("self_attn.o_proj",), "mlp", LM, NORM, ("model.embed_tokens.weight",)),
    Case("ViTForImageClassification", "ViTConfig", VIT, ("vit.layers",), ("attention.o_proj",), "mlp.fc2", CLASSIFIER,
         ("vit.layernorm.weight", *CLASSIFIER), ("vit.embeddings.cls_token",)),
    Case("SwinForImageClassification", "SwinConfig", SWIN, ("swin.encoder.layers.0.blocks",
         "swin.encoder.layers.1.blocks"), ("attention.o_proj",), "mlp.fc2", CLASSIFIER, ("swin.layernorm.weight",),
         ("swin.embeddings.norm.weight",)),
]
# fmt: on


def built(case: Case) -> Any:
    torch.manual_seed(0)
    with quiet():
        return getattr(transformers, case.model)(getattr(transformers, case.config)(**case.fields))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.model)
def test_blocks_and_what_lies_around_them(case: Case) -> None:
    network = built(case)
    found = blocks(network)
    assert [name for name, _ in found] == [f"{name}.{place}" for name in case.lists for place in (0, 1)]
    assert outputs(found[0][1]) == Outputs(case.attentions, case.feed_forward)
    assert head_names(network) == set(case.head)
    depth, top = depths(network)
    assert top == len(found) + 1
    for place, (name, block) in enumerate(found, 1):
        assert {depth(f"{name}.{leaf}") for leaf, _ in block.named_parameters()} == {place}
    assert all(depth(name) == top for name in case.top) and all(depth(name) == 0 for name in case.bottom)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.model)
def test_outputs_are_what_the_stream_takes_in(case: Case) -> None:
    """As wide as the stream, and the block hears of nothing else: with all of them silenced it hands its input on."""
    network = built(case)
    for _, block in blocks(network):
        ends = outputs(block)
        assert ends.feed_forward is not None
        for name in (*ends.attentions, ends.feed_forward):
            block.get_submodule(name).register_forward_hook(silenced(width(block)))
    heard = []
    first = blocks(network)[0][1]
    first.register_forward_hook(lambda module, inputs, result: heard.append((inputs, result)))
    network.eval()
    if case.config in ("ViTConfig", "SwinConfig"):
        network(torch.randn(1, 3, case.fields["image_size"], case.fields["image_size"]))
    elif len(case.lists) > 1:
        network(input_ids=torch.tensor([[3, 4, 5]]), decoder_input_ids=torch.tensor([[3, 4, 5]]))
    else:
        network(input_ids=torch.tensor([[3, 4, 5]]))
    ((given, *_), result) = heard[0]
    given, result = given.flatten(), (result[0] if isinstance(result, tuple) else result).flatten()
    # Where norms come after the sum, the input went through them: it keeps its direction but for mean and scale.
    alike = torch.corrcoef(torch.stack([given, result]))[0, 1]
    assert float(alike.detach()) > 0.999


def silenced(wide: int) -> Callable[..., Any]:
    def hook(module: nn.Module, inputs: Any, result: torch.Tensor) -> torch.Tensor:
        assert result.shape[-1] == wide
        return torch.zeros_like(result)

    return hook


def test_without_repetition_there_are_no_blocks() -> None:
    case = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    network = transformers.ResNetForImageClassification(transformers.ResNetConfig(**case))
    assert blocks(network) == []
    depth, top = depths(network)
    assert top == 1 and {name for name, _ in network.named_parameters() if depth(name) == 1} == head_names(network)


def test_quantised_products_count() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    network: Any = built(next(case for case in CASES if case.model == "LlamaForCausalLM"))
    plain = [outputs(block) for _, block in blocks(network)]
    for kind in (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt):
        for _, block in blocks(network):
            for name in ("self_attn.o_proj", "mlp.down_proj", "mlp.up_proj"):
                old = block.get_submodule(name)
                block.set_submodule(name, kind(old.in_features, old.out_features, bias=False))  # type: ignore[arg-type]
        assert [outputs(block) for _, block in blocks(network)] == plain


def test_depths_are_the_same_inside_of_an_adapter(tiny_llama: Path) -> None:
    from peft import LoraConfig, get_peft_model

    network = AutoModelForCausalLM.from_pretrained(tiny_llama)
    plain, top = depths(network)
    known = {name: plain(name) for name, _ in network.named_parameters()}
    with quiet():
        adapted = get_peft_model(network, LoraConfig(target_modules="all-linear"))
    depth, same = depths(adapted)
    assert same == top
    for name, _ in adapted.named_parameters():
        bare = name.removeprefix("base_model.model.").replace(".base_layer", "")
        if "lora_" in name:
            bare = f"{bare.partition('.lora_')[0]}.weight"
        assert depth(name) == known[bare], name


def test_an_untied_output_layer_is_a_copy_and_stays_one(tiny_llama: Path, tmp_path: Path) -> None:
    network = AutoModelForCausalLM.from_pretrained(tiny_llama)
    assert head_names(network) == frozenset(), "a shared weight is the embeddings'"
    before = network(input_ids=torch.tensor([[3, 4, 5]])).logits
    untie(network)
    assert head_names(network) == {"lm_head.weight"}
    assert torch.equal(network(input_ids=torch.tensor([[3, 4, 5]])).logits, before)
    with torch.no_grad():
        network.lm_head.weight.add_(1.0)
    network.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again.lm_head.weight, network.lm_head.weight)
    assert torch.equal(again.model.embed_tokens.weight, network.model.embed_tokens.weight)
    assert again.config.tie_word_embeddings is False
    count = len(list(again.parameters()))
    untie(again)
    assert len(list(again.parameters())) == count, "what is untied already is left alone"
