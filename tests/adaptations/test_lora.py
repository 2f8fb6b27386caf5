"""LoRA's targets: whole names of modules that PEFT can adapt, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from onsa.adaptations.lora import Lora
from onsa.models.heads import Head
from onsa.spec.errors import RecipeError


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
