"""Load a base as a network with the head a task needs, and its tokenizer.

Weights come from safetensors only. What the base does not have (a new head) is initialised from the seed and reported,
so that the optimizer can give it a rate of its own.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from onsa.models import quantize
from onsa.models.heads import Head
from onsa.spec.errors import ModelError
from onsa.spec.extras import hush
from onsa.spec.sections import Model

hush("bitsandbytes")  # PEFT and transformers import it wherever it is installed
CAUSAL = ("ForCausalLM", "LMHeadModel")  # a masked model sees the answer on both sides of it
DROPOUT_FIELDS = ("classifier_dropout", "seq_classif_dropout", "cls_dropout", "classifier_dropout_prob")


@dataclass(frozen=True)
class Loaded:
    """A network with its tokenizer; ``new`` names the parameters that the base did not have."""

    network: nn.Module
    tokenizer: Any
    new: frozenset[str]


@contextmanager
def quiet() -> Iterator[None]:
    """Transformers' own bars, notes about new heads and about its own coming changes, held back."""
    from transformers.utils import logging as hf_logging

    level = hf_logging.get_verbosity()
    bars = hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity(logging.CRITICAL)
    hf_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()


def load_tokenizer(folder: Path, model: Model) -> Any:
    """The tokenizer of a base, with a padding token where it names none.

    Raises:
        ModelError: the folder holds no tokenizer that can be read.
    """
    from transformers import AutoTokenizer

    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=model.trust_remote_code)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError.of("tokenizer-unreadable", file=str(folder), reason=first_line(error)) from None
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # transformers makes an empty one where files are missing
        raise ModelError.of("tokenizer-missing", file=str(folder))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def tokenizer_hash(tokenizer: Any) -> str:
    """One SHA-256 over what turns text into tokens: the vocabulary with its rules, and the chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return hashlib.sha256(f"{rules}\0{tokenizer.chat_template}".encode()).hexdigest()


def load(folder: Path, model: Model, head: Head, labels: tuple[str, ...], problem: str | None, seed: int) -> Loaded:
    """A base with the head for a task, in fp32 and eval mode.

    Args:
        labels: names of the outputs of a row head (one for regression); empty for token heads.
        problem: transformers' ``problem_type`` of a row head.
        seed: initialises what the base does not have.

    Raises:
        ModelError: the weights cannot be read, or the architecture has no such head.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    tokenizer = load_tokenizer(folder, model)
    torch.manual_seed(seed)
    settings: dict[str, Any] = {"trust_remote_code": model.trust_remote_code}
    with quiet():
        try:
            config = AutoConfig.from_pretrained(folder, **settings)
            builder = AutoModelForCausalLM
            if head is Head.ROWS:
                builder = AutoModelForSequenceClassification
                settings["ignore_mismatched_sizes"] = True  # a head for other labels is replaced below
                known = tuple(config.id2label.values())
                config.id2label = dict(enumerate(labels))
                config.label2id = {label: index for index, label in enumerate(labels)}
                config.problem_type = problem
                _set_head_dropout(config, model.head_dropout)
                config.pad_token_id = tokenizer.pad_token_id  # a decoder finds each row's last token by it
            elif config.architectures and not any(name.endswith(CAUSAL) for name in config.architectures):
                raise ModelError.of("model-no-language-head", file=model.name, architecture=config.architectures[0])
            if model.quantize is not None:
                settings |= _quantised(builder, config, model)
            network, loading = builder.from_pretrained(
                folder, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **settings
            )
        except (OSError, ValueError, KeyError) as error:
            raise ModelError.of("model-unreadable", file=str(folder), reason=first_line(error)) from None
    quantize.settle(network, torch.float32)  # before anything goes through it: a method may try it out
    new = frozenset(loading["missing_keys"])
    if head is Head.ROWS and known != labels:
        new |= _fresh_head(network, new)
    return Loaded(network.eval(), tokenizer, new)


def _quantised(builder: Any, config: Any, model: Model) -> dict[str, Any]:
    """Settings that quantise a base while it is loaded, on the CPU; none where it was saved like that.

    Raises:
        ModelError: it was saved in another scheme.
    """
    assert model.quantize is not None
    already = getattr(config, "quantization_config", None)
    if already is not None:
        if already.get("load_in_4bit" if model.quantize == "nf4" else "load_in_8bit"):
            return {"device_map": {"": "cpu"}}
        values = {"value": model.quantize, "found": already.get("quant_method")}
        raise ModelError.of("quantised-otherwise", key="model.quantize", **values)
    with torch.device("meta"):
        skeleton = builder.from_config(config, trust_remote_code=model.trust_remote_code)
    return {"quantization_config": quantize.settings(model.quantize, skeleton), "device_map": {"": "cpu"}}


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its class's name where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _fresh_head(network: Any, new: frozenset[str]) -> frozenset[str]:
    """Initialise what lies outside the base and came with it; returns the names of those parameters."""
    inside = f"{network.base_model_prefix}."
    kept = [name for name, _ in network.named_parameters() if not name.startswith(inside) and name not in new]
    for owner in dict.fromkeys(name.rpartition(".")[0] for name in kept):
        module = network.get_submodule(owner)
        for parameter in module.parameters(recurse=False):
            parameter._is_hf_initialized = False  # as loaded weights are marked, and would be left alone
        network._init_weights(module)
    return frozenset(kept)


def _set_head_dropout(config: Any, share: float | None) -> None:
    if share is None:
        return
    named = [name for name in DROPOUT_FIELDS if name in config.to_dict()]
    if not named:
        raise ModelError.of("head-dropout-unsupported", key="model.head_dropout", model=config.model_type)
    for name in named:
        setattr(config, name, share)


def hold_in(network: nn.Module, precision: str, device: torch.device) -> None:
    """Put a network on its device: what trains in fp32, what is frozen in the run's, or as it is quantised."""
    frozen = torch.bfloat16 if precision == "bf16" else torch.float32
    quantize.settle(network, frozen)
    for name, parameter in network.named_parameters():
        if quantize.is_quantised(parameter):
            quantize.move(network.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], device)
            continue
        dtype = torch.float32 if parameter.requires_grad else frozen
        parameter.data = parameter.data.to(device=device, dtype=dtype)
    for name, buffer in network.named_buffers():
        owner, _, leaf = name.rpartition(".")
        network.get_submodule(owner)._buffers[leaf] = buffer.to(device)
