"""The catalogue of packaged models and data, and what tuning one of the models takes in memory."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Literal

from onsa.spec.errors import ModelError, unknown
from onsa.spec.messages import say

ROWS, ROW_TOKENS = 4, 256
LORA_RANK = 8

FP32_BYTES = 4
BF16_BYTES = 2
ADAMW_BYTES = 8  # two fp32 averages a parameter
SCORE_COPIES = 3  # the softmax, the dropout's mask and their product
LOGIT_COPIES = 3  # the logits, their log-softmax and their gradient, in fp32


@dataclass(frozen=True, slots=True)
class Package:
    """A wheel of a package registry. sha256: of the wheel; files: what is taken from ``inside``, all where empty."""

    name: str
    version: str
    wheel: str
    sha256: str
    inside: str
    files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Shape:
    """What a transformer's memory depends on. mlp_matrices: 3 where the feed-forward part is gated, else 2."""

    hidden: int
    layers: int
    intermediate: int
    mlp_matrices: int
    heads: int
    key_value_heads: int
    vocabulary: int
    attention_dropout: bool

    @property
    def key_value(self) -> int:
        """Width of the keys, and of the values."""
        return self.hidden // self.heads * self.key_value_heads


@dataclass(frozen=True, slots=True)
class DataEntry:
    """A packaged data set. tasks: the kinds of task it has rows for."""

    name: str
    package: Package
    languages: tuple[str, ...]
    licence: str
    tasks: tuple[str, ...]
    download_bytes: int
    disk_bytes: int

    @property
    def description(self) -> str:
        """What it is, in the interface's language."""
        return say(f"catalog.{self.name}")


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A packaged model. tasks: kinds of task it can be tuned to; context: the longest input, in tokens; hub: its id."""

    name: str
    package: Package
    languages: tuple[str, ...]
    licence: str
    tasks: tuple[str, ...]
    download_bytes: int
    disk_bytes: int
    parameters: int
    context: int
    hub: str
    shape: Shape

    @property
    def description(self) -> str:
        """What it is, in the interface's language."""
        return say(f"catalog.{self.name}")


@cache
def catalog() -> Mapping[str, ModelEntry]:
    """The packaged models by name."""
    return MappingProxyType(
        {
            name: ModelEntry(name=name, **_common(table), shape=Shape(**table["shape"]))
            for name, table in _document()["model"].items()
        }
    )


@cache
def data_catalog() -> Mapping[str, DataEntry]:
    """The packaged data sets by name."""
    return MappingProxyType(
        {name: DataEntry(name=name, **_common(table)) for name, table in _document()["data"].items()}
    )


def entry(name: str) -> ModelEntry:
    """The packaged model of this name.

    Raises:
        ModelError: there is none; the message names the nearest.
    """
    if name not in catalog():
        raise ModelError(unknown("model-unknown", name, catalog(), key="model.name"))
    return catalog()[name]


def data_entry(name: str) -> DataEntry:
    """The packaged data set of this name.

    Raises:
        ModelError: there is none; the message names the nearest.
    """
    if name not in data_catalog():
        raise ModelError(unknown("data-package-unknown", name, data_catalog()))
    return data_catalog()[name]


def memory_to_tune(
    model: ModelEntry,
    adaptation: Literal["full", "lora"],
    precision: Literal["fp32", "bf16"] = "fp32",
    rows: int = ROWS,
    length: int = ROW_TOKENS,
) -> int:
    """Bytes that tuning takes with AdamW, for a micro-batch of ``rows`` of ``length`` tokens; an estimate from above.

    With P parameters of which T train, N = rows · length tokens, and b bytes a value (4 in fp32, 2 in bf16)::

        weights      full: 4 P, and 2 P more for the bf16 copies in bf16     lora: b P + 4 T
        gradients    4 T
        AdamW        8 T
        activations  N layers (6 · 4 hidden + b (4 hidden + 2 key_value + k intermediate)),   k = 4 gated, else 2
        scores       3 · 4 N layers heads length, where dropout within the attention keeps it from being fused
        logits       3 · 4 N vocabulary, where the model generates

    What trains is fp32 in both precisions, and with it the residual stream and its norms, six vectors a layer. LoRA, of
    rank 8 on every matrix, saves gradients and states, not activations. Counted against what the backward pass of both
    models kept (4 rows of 64 tokens, torch 2.13), activations and scores together came out 1 to 15 % above. The process
    itself (Python and torch, about 0.5 GB) is not in it.
    """
    shape, tokens = model.shape, rows * length
    value_bytes = FP32_BYTES if precision == "fp32" else BF16_BYTES
    if adaptation == "full":
        trained = model.parameters
        weights = FP32_BYTES * trained + (BF16_BYTES * trained if precision == "bf16" else 0)
    else:
        trained = lora_parameters(shape, LORA_RANK)
        weights = value_bytes * model.parameters + FP32_BYTES * trained
    states = (FP32_BYTES + ADAMW_BYTES) * trained

    inner = 4 if shape.mlp_matrices == 3 else 2
    computed = 4 * shape.hidden + 2 * shape.key_value + inner * shape.intermediate
    activations = tokens * shape.layers * (6 * FP32_BYTES * shape.hidden + value_bytes * computed)
    if shape.attention_dropout:
        activations += SCORE_COPIES * FP32_BYTES * tokens * shape.layers * shape.heads * length
    if "text-generation" in model.tasks:
        activations += LOGIT_COPIES * FP32_BYTES * tokens * shape.vocabulary
    return weights + states + activations


def lora_parameters(shape: Shape, rank: int) -> int:
    """Parameters of LoRA (Hu et al. 2021, Eq. 3: B A with rank ``rank``) on every matrix of every layer."""
    attention = 2 * (shape.hidden + shape.hidden) + 2 * (shape.hidden + shape.key_value)
    feed_forward = shape.mlp_matrices * (shape.hidden + shape.intermediate)
    return rank * shape.layers * (attention + feed_forward)


@cache
def _document() -> dict[str, dict[str, dict[str, Any]]]:
    return tomllib.loads((files("onsa.models") / "catalog.toml").read_text(encoding="utf-8"))


def _common(table: dict[str, Any]) -> dict[str, Any]:
    """The fields that every entry has, as they are in Python: tuples for lists, and the package."""
    plain = {name: value for name, value in table.items() if name not in ("shape", "package")}
    return {**_tupled(plain), "package": Package(**_tupled(table["package"]))}


def _tupled(table: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in table.items()}
