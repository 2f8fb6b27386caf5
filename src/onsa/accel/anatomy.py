"""Anatomy: what passes need to know of a network that is to be trained."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from onsa.adaptations.base import Adaptation
from onsa.models import attention, kernels
from onsa.models.batch import Batch, Example, collate
from onsa.models.boundary import HIDDEN, crosses, cut_of
from onsa.models.halves import Halves, measured
from onsa.models.heads import Head
from onsa.models.lowering import BY_ENDS, base_network, folded, for_row_head, packed, padded
from onsa.models.products import layers, shapes
from onsa.models.strata import Strata

LOOKS = 64  # places of a run at which it is looked how far down a staged method trains
AT_ONCE = 1024  # tokens for which attention is timed
SAME = 1e-4  # how far apart logits may be that are the same but for rounding
WINDOWS = ("sliding_window", "attention_chunk_size")  # of a configuration: a mask hides what lies further back


@dataclass(frozen=True)
class Anatomy:
    """Facts of a network.

    blocks: how many repeated layers it has; ``width`` is that of its hidden states.
    stages: for each cut at which training begins at some time (``None``: nothing below can be left out), its share of
        the run's steps.
    reads: what a head reads of its base's results, if the network can begin at these cuts; else ``None``.
    plain_products, products: adapted linear layers in LoRA's plain form, and all.
    halves: of those layers' widths, which products are faster by half of their rows.
    kernels: names of modules whose work on each value can be one loop (:mod:`onsa.models.kernels`).
    vocabulary: tokens that a plain linear output layer scores; 0 where the head is another.
    recomputes: whether its blocks can compute anew what they would keep for the way back.
    shares: whether answers that stand behind one prompt get what each would behind a prompt of its own.
    attention: seconds that each way to attend takes here, of those that give this network's own results; some are for
        rows that are packed into a line.
    """

    blocks: int
    width: int
    stages: tuple[tuple[int | None, float], ...]
    reads: str | None = HIDDEN
    plain_products: int = 0
    products: int = 0
    halves: Halves = field(default_factory=dict)
    kernels: tuple[str, ...] = ()
    vocabulary: int = 0
    attention: Mapping[str, float] = field(default_factory=dict)
    recomputes: bool = False
    shares: bool = False

    @property
    def cuts(self) -> tuple[int, ...]:
        """Where training begins at some time, from below."""
        return tuple(sorted(cut for cut, _ in self.stages if cut is not None))


@dataclass(frozen=True)
class Subject:
    """A network that is looked at, with how it is to be trained.

    lengths: of the training rows, in tokens.
    total: optimizer steps of the run.
    answers: rows hold several answers.
    """

    network: nn.Module
    head: Head
    adaptation: Adaptation
    config: Mapping[str, Any]
    lengths: Sequence[int]
    total: int
    device: str
    precision: str
    answers: bool = False


def examine(subject: Subject) -> Anatomy:
    """The facts of an adapted network, which is left as it was."""
    network = subject.network
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        strata = Strata.of(network)
        stages = _stages(subject, strata)
        cuts = [cut for cut, _ in stages if cut is not None]
        plain, products = layers(network)
        on_cpu = subject.device == "cpu"
        return Anatomy(
            blocks=len(strata.blocks),
            width=int(subject.config.get("hidden_size") or 0),
            stages=stages,
            reads=crosses(network, strata, cuts) if cuts else HIDDEN,
            plain_products=len(plain),
            products=products,
            halves=measured(shapes(plain), _type(subject)) if on_cpu else {},
            kernels=kernels.found(network) if on_cpu else (),
            vocabulary=_vocabulary(subject),
            attention=_attention(subject),
            shares=subject.answers and subject.head is Head.TOKENS and _shares(subject),
            recomputes=bool(getattr(base_network(network), "supports_gradient_checkpointing", False)),
        )
    finally:
        for module, training in modes:
            module.training = training


def _type(subject: Subject) -> torch.dtype:
    """What it multiplies in."""
    return torch.bfloat16 if subject.precision == "bf16" else torch.float32


def _vocabulary(subject: Subject) -> int:
    output = base_network(subject.network).get_output_embeddings() if subject.head is Head.TOKENS else None
    return output.weight.shape[0] if type(output) is nn.Linear and output.bias is None else 0


def _attention(subject: Subject) -> dict[str, float]:
    """Times of the ways to attend that change nothing, the network's own among them; none where it has another one."""
    network, config = subject.network, subject.config
    if attention.used(network) != attention.FUSED or not config.get("num_attention_heads"):
        return {}
    heads = int(config["num_attention_heads"])
    tokens = max(1, sorted(subject.lengths)[len(subject.lengths) // 2]) if subject.lengths else 1
    shape = attention.Shape(
        rows=max(1, AT_ONCE // tokens),
        tokens=tokens,
        heads=heads,
        shared=int(config.get("num_key_value_heads") or heads),
        width=int(config.get("head_dim") or config["hidden_size"] // heads),
    )
    own = _said(subject)
    usable = [attention.FUSED]
    windows = [int(config[name]) for name in WINDOWS if config.get(name)]
    masked = min(windows, default=math.inf) < max(subject.lengths, default=0)
    lined = BY_ENDS if subject.head is Head.TOKENS else ()
    for way in (attention.PRODUCTS,) if masked else (*attention.WAYS, *lined):
        try:
            attention.use(network, way)
            found = _said(subject)
            if float((found - own).norm() / own.norm()) <= SAME:
                usable.append(way)
        except (ValueError, RuntimeError, TypeError, AttributeError):
            pass  # a network that does not let itself be told how to attend
        finally:
            attention.use(network, attention.FUSED)
    known = attention.times(shape, subject.device, _type(subject))
    return {way: known[way] for way in usable}


@torch.no_grad()
def _said(subject: Subject) -> Tensor:
    """What a network says to two rows of unlike length, laid out as in training; of padding nothing."""
    tokens, longest = 5, 3
    token_N = torch.arange(1, tokens + longest + 1, device=next(subject.network.parameters()).device)
    target_M = torch.zeros(2, dtype=torch.long)
    batch = Batch(token_N, (tokens, longest), None, target_M, torch.ones(2), (0, 1))
    if attention.used(subject.network) in BY_ENDS:
        block = packed(subject.network, batch)
    else:
        block = (for_row_head if subject.head is Head.ROWS else padded)(subject.network, batch, 0)
    logits: Tensor = block.network(**block.inputs).logits
    return logits if subject.head is Head.ROWS else logits.flatten(0, 1)[block.flat_N]


@torch.no_grad()
def _shares(subject: Subject) -> bool:
    """Whether a network says the same of answers behind one prompt and of each behind its own."""
    device = next(subject.network.parameters()).device
    weight_T = np.asarray([0.0] * 3 + [1.0] * 5, np.float32)
    rows = [Example(np.arange(1, 9, dtype=np.int32), weight_T, np.arange(2.0), part_P=(3, 2, 3))]
    rows.append(Example(np.arange(5, 11, dtype=np.int32), weight_T[2:], np.arange(3.0), part_P=(1, 1, 3, 1)))
    batch = collate(rows).to(device)
    try:
        block, plain = folded(subject.network, batch, 0), padded(subject.network, batch.unfolded(), 0)
        said = [one.network(**one.inputs).logits.flatten(0, 1)[one.flat_N] for one in (block, plain)]
    except (ValueError, RuntimeError, TypeError):
        return False  # a network with a mask of its own, or something in front of every row
    found, wanted = said[0][batch.predict_M], said[1][batch.unfolded().predict_M]
    return float((found - wanted).norm() / wanted.norm()) <= SAME


def _stages(subject: Subject, strata: Strata) -> tuple[tuple[int | None, float], ...]:
    network, adaptation, total = subject.network, subject.adaptation, subject.total
    if not adaptation.staged:
        return ((cut_of(network, strata), 1.0),)
    trains = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    steps = {round(look * (total - 1) / (LOOKS - 1)) for look in range(LOOKS)}
    found: Counter[int | None] = Counter()
    for step in sorted(steps):
        adaptation.before_step(network, step, total)
        found[cut_of(network, strata)] += 1
    for parameter, mark in trains:
        parameter.requires_grad_(mark)
    return tuple((cut, count / len(steps)) for cut, count in found.items())
