"""Dealing: which process takes which of a step's micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from onsa.models.batch import Batch


def dealt(batches: Sequence[Batch], count: int) -> list[list[Batch]]:
    """Micro-batches for each process: the one with the most tokens goes to the one with the fewest so far."""
    parts: list[list[Batch]] = [[] for _ in range(count)]
    loads = [0] * count
    for batch in sorted(batches, key=_size, reverse=True):
        rank = loads.index(min(loads))
        parts[rank].append(batch)
        loads[rank] += _size(batch)
    return parts


def enough(batches: Sequence[Batch], count: int) -> list[Batch]:
    """Micro-batches of the same rows, of which there is one for each process: the largest are halved, as far as they
    have rows."""
    given = list(batches)
    while len(given) < count:
        place = max(range(len(given)), key=lambda place: (len(given[place].length_R) > 1, _size(given[place])))
        if len(given[place].length_R) == 1:
            break
        given[place : place + 1] = given[place].halves()
    return given


def filled(parts: Sequence[list[Batch]]) -> list[list[Batch]]:
    """As many micro-batches for each process as for that with the most: a row that does not count is put in."""
    most = max(map(len, parts))
    shortest = min((batch for part in parts for batch in part), key=_size)
    while len(shortest.length_R) > 1:
        shortest, _ = shortest.halves()
    idle = _idle(shortest)
    return [[*part, *[idle] * (most - len(part))] for part in parts]


def _idle(batch: Batch) -> Batch:
    """A batch that does not count."""
    companion = None if batch.companion is None else _idle(batch.companion)
    return replace(batch, weight_M=torch.zeros_like(batch.weight_M), companion=companion)


def _size(batch: Batch) -> int:
    """The tokens of a batch; rows of like length have little padding, packed ones none."""
    return len(batch.token_N)
