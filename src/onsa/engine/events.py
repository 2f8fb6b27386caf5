"""Events: what the loop tells its readers. Progress bars, logs and the store read them; none steers the loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Begun:
    """A run starts or goes on: ``step`` steps of ``total`` are done; ``broken`` are checkpoints passed over."""

    step: int
    total: int
    broken: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stepped:
    """One optimizer step. ``loss`` is the mean over its weight; ``trained`` counts predictions, ``tokens`` all.

    ``lr`` is the recipe's rate under the schedule; ``rates`` are those of the groups of parameters, by label: 0 where a
    group does not train yet.
    """

    step: int
    total: int
    epoch: int
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    trained: int
    seconds: float
    rates: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluated:
    """The validation rows were measured. ``stale`` counts those since one that was better by ``min_delta``; ``said`` is
    what the first of them were answered, by prompt, where they were answered."""

    step: int
    epoch: int
    metrics: dict[str, float]
    best: bool
    stale: int
    said: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Saved:
    """A checkpoint was published."""

    step: int
    folder: Path


Event = Begun | Stepped | Evaluated | Saved
