"""Forecast: how much memory and time a run will take, before it is begun.

Memory is counted from the network's own parameters and the plan's largest micro-batch; time is measured on a few real
steps of a throw-away session.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, cast

import psutil
import torch
from torch import nn

from onsa.accel.anatomy import Subject, examine
from onsa.accel.passes import MEMORY, NETWORK
from onsa.accel.plan import decide
from onsa.engine.batches import micro_batches
from onsa.engine.sessions.base import Session, Work
from onsa.models import critic
from onsa.models.blocks import depths
from onsa.models.heads import Head
from onsa.models.load import load
from onsa.models.quantize import count, held_bytes, is_quantised
from onsa.objectives.base import Objective, Role
from onsa.optim.optimizers.base import Optimizer
from onsa.optim.schedules.base import Schedule
from onsa.programs.prepare import Prepared
from onsa.programs.rollouts import feed, graders
from onsa.regularisers.base import Regulariser
from onsa.sources.base import Cursor
from onsa.spec.errors import Level, Problem

RUNTIME_BYTES = 450_000_000  # what Python, torch and transformers take before any weights are there
KEPT_VECTORS = 16  # values kept for the backward pass a token and layer, in widths of the hidden state


@dataclass(frozen=True)
class Forecast:
    """Bytes at the peak by what they are for, bytes that are free, and seconds for all optimizer steps."""

    weights: int
    training: int
    activations: int
    runtime: int
    free: int
    trainable: int
    parameters: int
    seconds: float | None = None
    tokens_a_second: float | None = None

    @property
    def memory(self) -> int:
        return self.weights + self.training + self.activations + self.runtime

    def problem(self) -> Problem | None:
        """An error where the run cannot fit, a warning where it hardly does."""
        if self.memory <= 0.9 * self.free:
            return None
        values = {"needed": f"{self.memory / 1e9:.1f}", "free": f"{self.free / 1e9:.1f}"}
        level = Level.ERROR if self.memory > self.free else Level.WARNING
        return Problem("memory-short", values, key="train.accumulate", level=level)


@dataclass(frozen=True)
class Built:
    """A run with its network.

    prepared: with a plan in which every pass has decided.
    network: as it will train, with what trains marked.
    new: names of the parameters that the base did not have.
    """

    prepared: Prepared
    network: nn.Module
    new: frozenset[str]


def build(prepared: Prepared) -> Built:
    """Load the base and adapt it, and let the passes over the network decide.

    Raises:
        RecipeError: the adaptation or the optimizer has a setting that does not fit this network.
    """
    recipe, task = prepared.recipe, prepared.task
    loaded = load(prepared.base.folder, recipe.model, task.head, task.outputs, task.hf_problem, recipe.seed)
    torch.manual_seed(recipe.seed)
    network = prepared.adaptation.apply(loaded.network, task.head, loaded.new, prepared.total)
    new = loaded.new
    if Role.CRITIC in cast(Objective, recipe.objective).asks:
        new |= critic.attach(network)
    cast(Optimizer, recipe.optimizer).groups(network, new, prepared.adaptation.staged)  # for what it refuses
    plan = prepared.plan
    if recipe.accel.mode != "off":
        plan = replace(plan, anatomy=examine(_subject(prepared, network)))
    built = Built(replace(prepared, plan=decide(plan, recipe.accel, NETWORK)), network, new)
    seen = forecast(built)
    plan = decide(replace(built.prepared.plan, needed=seen.memory, free=seen.free), recipe.accel, MEMORY)
    return replace(built, prepared=replace(prepared, plan=plan))


def _subject(prepared: Prepared, network: nn.Module) -> Subject:
    return Subject(
        network=network,
        head=prepared.task.head,
        adaptation=prepared.adaptation,
        config=prepared.base.config,
        lengths=prepared.plan.lengths,
        total=prepared.total,
        device=prepared.plan.device,
        precision=prepared.recipe.train.precision or "fp32",
        answers=prepared.plan.repeated > 0,
    )


def work(built: Built) -> Work:
    """What a session needs to train this network."""
    prepared, recipe = built.prepared, built.prepared.recipe
    return Work(
        network=built.network,
        adaptation=prepared.adaptation,
        regularisers=cast(tuple[Regulariser, ...], recipe.regulariser),
        new=built.new,
        pad_id=prepared.tokenizer.pad_token_id,
        plan=prepared.plan,
        optimizer=cast(Optimizer, recipe.optimizer),
        schedule=cast(Schedule, recipe.schedule),
        precision=recipe.train.precision or "fp32",
        clip=recipe.train.clip,
        seed=recipe.seed,
        total=prepared.total,
        base=f"{prepared.base.sha256} {recipe.model.quantize}",
        sides=(prepared.examples["train"], prepared.examples["validation"]),
        uses=cast(Objective, recipe.objective).asks,
        live=prepared.plan.live,
        temperature=prepared.source.cooling,
    )


def forecast(built: Built) -> Forecast:
    """Memory from counting; no step is run."""
    prepared, network = built.prepared, built.network
    recipe = prepared.recipe
    bf16, state = recipe.train.precision == "bf16", cast(Optimizer, recipe.optimizer).state_bytes
    trainable = sum(p.numel() for p in network.parameters() if p.requires_grad)
    quantised = [p for p in network.parameters() if is_quantised(p)]
    frozen = sum(p.numel() for p in network.parameters() if not p.requires_grad and not is_quantised(p))
    processes, (held, resting) = prepared.engine.copies.processes, _held(prepared, network)
    regularisers = cast(tuple[Regulariser, ...], recipe.regulariser)
    value = 2 if bf16 else 4
    if prepared.plan.device == "cuda":
        free = torch.cuda.mem_get_info()[0]
    else:
        free = psutil.virtual_memory().available + psutil.Process().memory_info().rss
    return Forecast(
        weights=sum(map(held_bytes, quantised))
        + resting * value
        + held * (6 if bf16 else 4),  # autocast keeps a bf16 copy of what trains
        training=held * (4 + state + 4 * sum(r.copies for r in regularisers)),  # a gradient, a state, and copies
        activations=processes
        * _activations(prepared, network, value)
        * max((r.passes for r in regularisers), default=1),
        runtime=processes * RUNTIME_BYTES,
        free=free,
        trainable=trainable,
        parameters=trainable + frozen + sum(map(count, quantised)),
    )


def _held(prepared: Prepared, network: nn.Module) -> tuple[int, int]:
    """The values that train, and those that rest (unless quantised), as often as the memory that counts holds them."""
    copies, (depth, top) = prepared.engine.copies, depths(network)
    held = resting = 0.0
    for name, parameter in network.named_parameters():
        times = copies.blocks if 0 < depth(name) < top else copies.outside
        if parameter.requires_grad:
            held += parameter.numel() * times
        elif not is_quantised(parameter):
            resting += parameter.numel() * min(1.0, times)  # the processes of a CPU share it
    return int(held), int(resting)


def _activations(prepared: Prepared, network: nn.Module, value: int) -> int:
    """Bytes that the largest micro-batch keeps for the way back.

    Args:
        value: bytes of a number in the run's precision.
    """
    config, plan = prepared.base.config, prepared.plan
    width, layers = int(config.get("hidden_size", 768)), int(config.get("num_hidden_layers", 12))
    inner, heads = int(config.get("intermediate_size", 4 * width)), int(config.get("num_attention_heads", 12))
    vocabulary = int(config.get("vocab_size", 0)) if prepared.task.head is Head.TOKENS else 0
    laid = _largest(prepared)
    layers = _kept_blocks(prepared, network, layers)
    # Norms and the residual stream stay in fp32 under autocast; the feed-forward part's inner values do not.
    block = laid.tokens * (KEPT_VECTORS * width * 4 + 3 * inner * value) + heads * laid.pairs * value
    kept = layers * laid.tokens * width * 4 + block if plan.recompute else layers * block
    at_once = laid.predictions if plan.head_rows is None else min(laid.predictions, plan.head_rows)
    return kept + at_once * vocabulary * 3 * 4 + (laid.predictions * width * 4 if at_once < laid.predictions else 0)


def timed(prepared: Prepared, session: Session, seen: Forecast) -> Forecast:
    """The forecast with its seconds, from a few real steps on a session that is thrown away."""
    steps = 1 if prepared.source.makes else 3  # answers take their time
    objective = cast(Objective, prepared.recipe.objective)
    spent: list[float] = []
    tokens = 0
    given = feed(prepared, session, graders(prepared))
    started = time.perf_counter()
    for examples, _ in islice(prepared.source.steps(given, Cursor()), steps + 1):
        session.forward_backward(micro_batches(examples, prepared.plan, prepared.recipe.train.accumulate), objective)
        session.step()
        spent.append(time.perf_counter() - started)
        tokens += sum(len(example.token_T) for example in examples)
        started = time.perf_counter()
    counted = spent[1:] or spent  # the first step also pays for first-time work
    rate = tokens / sum(spent) if len(spent) == 1 else (tokens * len(counted) / len(spent)) / sum(counted)
    seconds = prepared.total * sum(counted) / len(counted)
    return Forecast(**{**vars(seen), "seconds": seconds, "tokens_a_second": rate})


def _kept_blocks(prepared: Prepared, network: nn.Module, layers: int) -> int:
    """The blocks whose inner values a backward pass needs: from the lowest one that trains on, and at least one."""
    depth, top = depths(network)
    lowest = min(depth(name) for name, parameter in network.named_parameters() if parameter.requires_grad)
    if top == 1 or prepared.adaptation.places():  # no blocks are known, or what trains lies in front of them
        return layers
    return min(layers, max(1, top - lowest))


@dataclass(frozen=True)
class _Laid:
    """A micro-batch as it goes through the network: tokens with their padding, pairs of tokens that see each other,
    and predictions whose logits are computed."""

    tokens: int
    pairs: int
    predictions: int


def _largest(prepared: Prepared) -> _Laid:
    """The micro-batch that takes the most memory, over the first steps."""
    plan, virtual = prepared.plan, prepared.adaptation.places()
    found = [_Laid(1, 1, 1)]
    for examples, _ in islice(prepared.source.steps(prepared.feed, Cursor()), 50):
        for micro in micro_batches(examples, plan, prepared.recipe.train.accumulate):
            batch = micro if plan.layout == "folded" else micro.unfolded()
            longest = max(batch.length_R)
            laid = [(n if plan.layout == "packed" else longest) + virtual for n in batch.length_R]
            asked = len(batch.weight_M) if plan.logits == "supervised" else len(batch.token_N)
            found.append(_Laid(sum(laid), sum(n * n for n in laid), asked))
    return max(found, key=lambda one: one.tokens)


def hours(seconds: float) -> str:
    """Seconds as ``h:mm:ss`` or ``m:ss``."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def parts(seen: Forecast) -> Sequence[tuple[str, Any]]:
    """The memory forecast as rows of a table: message code and bytes."""
    return [
        ("memory-weights", seen.weights),
        ("memory-training", seen.training),
        ("memory-activations", seen.activations),
        ("memory-runtime", seen.runtime),
    ]
