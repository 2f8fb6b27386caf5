"""Dataset: the training rows, shuffled anew each epoch; the order is a function of (seed, epoch) alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from onsa.models.batch import Example
from onsa.sources.base import Cursor, Feed, Rows, Source


class Dataset(Source):
    """Rows of a data set in batches of tokens or of rows.

    shuffle: draw the rows of each epoch in a new order; off keeps the file's order.
    window: steps that share out their rows among them by length, so that less is padded; 1 leaves each step the rows
        that were drawn for it. The steps of a window come in an order of their own.
    """

    kind: ClassVar[str] = "dataset"
    shuffle: bool = True
    window: Annotated[int, Field(ge=1)] = 1

    def total(self, feed: Feed) -> int:
        epochs = range(feed.train.epochs or 1)
        steps = sum(len(self._epoch(feed, epoch)) for epoch in epochs)
        return min(steps, feed.train.max_steps or steps)

    def steps(self, feed: Feed, at: Cursor) -> Iterator[tuple[list[Example], Cursor]]:
        total, step = self.total(feed), at.step
        for epoch in range(at.epoch, feed.train.epochs or 1):
            batches = self._epoch(feed, epoch)
            for index in range(at.index if epoch == at.epoch else 0, len(batches)):
                if step == total:
                    return
                step += 1
                last = index + 1 == len(batches)
                after = Cursor(step, epoch + 1, 0) if last else Cursor(step, epoch, index + 1)
                yield [feed.examples[row] for row in batches[index]], after

    def _epoch(self, feed: Feed, epoch: int) -> list[Rows]:
        """Row indices of each step of one epoch."""
        steps = feed.cut(feed.order(epoch) if self.shuffle else np.arange(len(feed.examples)), feed.length_R)
        if self.window == 1:
            return steps
        found: list[Rows] = []
        for start in range(0, len(steps), self.window):
            drawn = np.concatenate(steps[start : start + self.window])
            alike = feed.cut(drawn[np.lexsort((drawn, feed.length_R[drawn]))], feed.length_R)
            places = np.random.default_rng([feed.seed, epoch, start]).permutation(len(alike))
            found += [alike[place] for place in places]
        return found
