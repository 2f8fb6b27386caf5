"""Source: where steps come from. A step is the examples that one movement of the weights sees."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from onsa.models.batch import Example, sizes
from onsa.spec.component import Component, Form
from onsa.spec.sections import Train

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Cursor:
    """A place in a run: optimizer steps done, and where in the source the next one begins."""

    step: int = 0
    epoch: int = 0
    index: int = 0  # steps already taken in this epoch


class Desk(ABC):
    """Where a policy answers prompts, and its answers are graded."""

    @abstractmethod
    def answer(self, prompts: Sequence[Example], seeds: Sequence[Sequence[int]], often: bool) -> list[Example]:
        """Rows that hold a prompt and graded answers, one for each seed; they are kept until the next are asked for.

        Args:
            often: the policy learns from them in more than one step, and will no longer be the one that gave them.
        """

    @abstractmethod
    def again(self) -> list[Example]:
        """The rows that were answered last."""

    @abstractmethod
    def save(self, to: Path) -> None:
        """Write what is kept into a checkpoint's folder."""

    @abstractmethod
    def restore(self, at: Path) -> None:
        """Read what ``save`` wrote."""


@dataclass(frozen=True)
class Feed:
    """What a source draws from; without a desk, one that needs it gives rows that stand for those it would."""

    examples: Sequence[Example]
    train: Train
    seed: int
    desk: Desk | None = field(default=None, repr=False)

    @cached_property
    def length_R(self) -> Rows:
        """Tokens of each example."""
        return sizes(self.examples).length_R

    def order(self, epoch: int) -> Rows:
        """The rows of an epoch in an order that is a function of (seed, epoch) alone."""
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.examples))

    def cut(self, order_R: Rows, length_R: Rows) -> list[Rows]:
        """Rows in an order, cut into steps of the rows or the tokens that the recipe says.

        A row that is longer than ``batch_tokens`` makes a step of its own.
        """
        if self.train.batch_rows:
            return np.split(order_R, range(self.train.batch_rows, len(order_R), self.train.batch_rows))
        limit = self.train.batch_tokens or 1
        cuts, used = [], 0
        for place, size in enumerate(length_R[order_R].tolist()):
            if used and used + size > limit:
                cuts.append(place)
                used = 0
            used += size
        return np.split(order_R, cuts)


class Source(Component):
    """The base of every source; ``makes`` are the forms of rows that it makes examples of itself."""

    makes: ClassVar[frozenset[Form]] = frozenset()

    @abstractmethod
    def total(self, feed: Feed) -> int:
        """Optimizer steps from the beginning to the end."""

    def an_epoch(self, feed: Feed) -> int:
        """About how many optimizer steps one epoch has."""
        if feed.train.batch_rows:
            return -(-len(feed.length_R) // feed.train.batch_rows)
        return max(1, -(-int(feed.length_R.sum()) // (feed.train.batch_tokens or 1)))

    @abstractmethod
    def steps(self, feed: Feed, at: Cursor) -> Iterator[tuple[list[Example], Cursor]]:
        """The examples of each step from a cursor on, with the cursor that stands behind the step."""

    def seen(self, examples: Sequence[Example]) -> Sequence[Example]:
        """Rows as they go through the network, of rows as the task encodes them."""
        return examples

    def told(self, examples: Sequence[Example]) -> dict[str, float]:
        """Figures of a step's examples."""
        return {}

    @property
    def room(self) -> int:
        """Tokens that are to come behind each row."""
        return 0

    @property
    def cooling(self) -> float:
        """What logits are divided by before they become the probabilities that are learnt from."""
        return 1.0
