"""From rows to examples, and from a step's examples to the micro-batches that go through the network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from onsa.accel import like_lengths, packing
from onsa.accel.plan import Plan
from onsa.data.table import Row
from onsa.models.batch import Batch, Example, collate
from onsa.tasks.base import Task

EVALUATION_ROWS = 32
EVALUATION_TOKENS = 4096  # padded tokens at once: the logits of each may be as many as the vocabulary


def encode(task: Task, rows: Sequence[Row], tokenizer: Any, max_length: int) -> list[Example]:
    """Rows as examples; those of which ``max_length`` leaves nothing to train are left out (preflight counts them)."""
    examples = (replace(task.encode(row, tokenizer, max_length), row=index) for index, row in enumerate(rows))
    return [example for example in examples if example.supervised]


def micro_batches(examples: Sequence[Example], plan: Plan, accumulate: int) -> list[Batch]:
    """A step's examples in at least ``accumulate`` micro-batches (as far as there are rows)."""
    parts = _parts([len(example.token_T) for example in examples], plan, accumulate)
    return [collate([examples[index] for index in part]) for part in parts]


def padding(steps: Iterable[Sequence[Example]], plan: Plan, accumulate: int) -> float:
    """The share of what goes through the network that is padding, over some steps' examples."""
    if plan.layout == "packed":
        return 0.0
    real = laid = 0
    for examples in steps:
        lengths = [len(example.token_T) for example in examples]
        real += sum(lengths)
        laid += sum(len(part) * max(lengths[index] for index in part) for part in _parts(lengths, plan, accumulate))
    return 1 - real / laid if laid else 0.0


def _parts(lengths: Sequence[int], plan: Plan, accumulate: int) -> list[list[int]]:
    """The indices of a step's rows in each micro-batch."""
    if plan.layout == "packed":
        return packing.lines(lengths, plan.device, accumulate)
    if plan.blocks == "like-lengths":
        return like_lengths.blocks(lengths, plan.device, accumulate)
    rows = -(-len(lengths) // accumulate)
    return [list(range(start, min(start + rows, len(lengths)))) for start in range(0, len(lengths), rows)]


def evaluation_batches(examples: Sequence[Example], plan: Plan) -> list[Batch]:
    """All examples once, in batches of a size that evaluation can hold."""
    if not examples:
        return []
    if plan.layout == "packed" or plan.blocks == "like-lengths":
        return micro_batches(examples, plan, -(-len(examples) // EVALUATION_ROWS))
    parts: list[list[Example]] = []
    longest = 0
    for example in examples:
        longest = max(longest, len(example.token_T))
        rows = len(parts[-1]) + 1 if parts else math.inf
        if rows > EVALUATION_ROWS or rows * longest > EVALUATION_TOKENS:
            parts.append([])
            longest = len(example.token_T)
        parts[-1].append(example)
    return [collate(part) for part in parts]
