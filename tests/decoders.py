"""Tiny random decoders of several families, adapters for one of them, and a listener to what a batcher tells."""

from __future__ import annotations

import threading
import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from onsa.models.load import quiet
from onsa.models.policy import Policy
from onsa.serve.adapters import Adapter
from onsa.serve.asks import Answers, Ask, Done, Event, Read, Said, Ticket
from onsa.spec.recipe import parse_recipe

VOCABULARY = 97
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
MIXED = {"use_sliding_window": True, "sliding_window": 9, "layer_types": ["sliding_attention", "full_attention"]}
FAMILIES = {
    "llama": LlamaConfig(**SIZES),
    "window": MistralConfig(**SIZES, sliding_window=9),
    "mixed": Qwen2Config(**SIZES, **MIXED),
    "normed": Qwen3Config(**SIZES, head_dim=16),
    "learned-places": GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=512,
        bos_token_id=None,
        eos_token_id=None,
    ),
}


def network(family: str = "llama", seed: int = 0) -> Any:
    """A random decoder, livelier than an untrained one: it does not say the same everywhere."""
    torch.manual_seed(seed)
    with quiet():
        made = AutoModelForCausalLM.from_config(deepcopy(FAMILIES[family])).eval().requires_grad_(False)
    for parameter in made.parameters():
        parameter.mul_(4 if parameter.ndim > 1 else 1)
    made.generation_config.eos_token_id = None
    return made


def policy(family: str = "llama", seed: int = 0) -> Policy:
    return Policy(network(family, seed), 0, torch.device("cpu"))


def adapter(folder: Path, name: str, over: Any = None, **lora: Any) -> Adapter:
    """An adapter over a network (:func:`network` if not given), as a run keeps it, with numbers of its own."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"], **lora}
    with quiet():
        adapted = get_peft_model(over or network(), LoraConfig(task_type="CAUSAL_LM", **settings))
    torch.manual_seed(sum(name.encode()))
    for key, parameter in adapted.named_parameters():
        if "lora_" in key:
            parameter.data.normal_(0, 0.3)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Setting `save_embedding_layers`")
        adapted.save_pretrained(folder / name / "model")
    values = {"model": "tiny", "data": {"path": "d.csv"}, "task": {"kind": "chat"}, "adaptation": "lora"}
    return Adapter(name, (folder / name,), parse_recipe(values))


def alone(one: Adapter) -> Any:
    """The network with one adapter, as PEFT computes it."""
    from peft import PeftModel

    made: Any = network()
    with quiet():
        made = PeftModel.from_pretrained(made, one.folders[0] / "model")
    return made.eval()


class Heard:
    """What a batcher has told of one request."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.ticket: Ticket | None = None
        self._over = threading.Event()
        self.begun = threading.Event()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self.begun.set()
        if isinstance(event, Done):
            self._over.set()

    @property
    def done(self) -> Done:
        assert self._over.wait(20), "no answer came to its end"
        last = self.events[-1]
        assert isinstance(last, Done) and sum(isinstance(event, Done) for event in self.events) == 1
        return last

    @property
    def said(self) -> list[Said]:
        assert self.done
        return [event for event in self.events if isinstance(event, Said)]

    @property
    def tokens(self) -> list[int]:
        return [said.token for said in self.said]

    @property
    def read(self) -> Read:
        assert self.done
        return next(event for event in self.events if isinstance(event, Read))


def send(answers: Answers, ask: Ask) -> Heard:
    heard = Heard()
    heard.ticket = answers.submit(ask, heard)
    return heard
