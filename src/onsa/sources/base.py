"""Source: where steps come from. A step is the examples that one movement of the weights sees."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from onsa.models.batch import Example, sizes
from onsa.models.policy import Models
from onsa.spec.component import Component
from onsa.spec.sections import Train


@dataclass(frozen=True)
class Cursor:
    """A place in a run: optimizer steps done, and where in the source the next one begins."""

    step: int = 0
    epoch: int = 0
    index: int = 0  # steps already taken in this epoch


@dataclass(frozen=True)
class Feed:
    """What a source draws from."""

    examples: Sequence[Example]
    train: Train
    seed: int
    models: Models | None = field(default=None, repr=False)

    @cached_property
    def length_R(self) -> npt.NDArray[np.int64]:
        """Tokens of each example."""
        return sizes(self.examples).length_R


class Source(Component):
    """The base of every source."""

    @abstractmethod
    def total(self, feed: Feed) -> int:
        """Optimizer steps from the beginning to the end."""

    @abstractmethod
    def steps(self, feed: Feed, at: Cursor) -> Iterator[tuple[list[Example], Cursor]]:
        """The examples of each step from a cursor on, with the cursor that stands behind the step."""
