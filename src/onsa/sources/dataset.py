"""Dataset: the training rows, shuffled anew each epoch; the order is a function of (seed, epoch) alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from onsa.models.batch import Example
from onsa.sources.base import Cursor, Feed, Source


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

    def _epoch(self, feed: Feed, epoch: int) -> list[list[int]]:
        """Row indices of each step of one epoch. A row that is longer than ``batch_tokens`` makes a step of its own."""
        steps = self._cut(feed, self._order(feed, epoch))
        if self.window == 1:
            return steps
        found: list[list[int]] = []
        for start in range(0, len(steps), self.window):
            drawn = [row for step in steps[start : start + self.window] for row in step]
            alike = self._cut(feed, sorted(drawn, key=lambda row: (len(feed.examples[row].token_T), row)))
            places = np.random.default_rng([feed.seed, epoch, start]).permutation(len(alike))
            found += [alike[place] for place in places]
        return found

    def _order(self, feed: Feed, epoch: int) -> list[int]:
        order = np.arange(len(feed.examples))
        if self.shuffle:
            order = np.random.default_rng([feed.seed, epoch]).permutation(order)
        return [int(row) for row in order]

    @staticmethod
    def _cut(feed: Feed, order: list[int]) -> list[list[int]]:
        """Rows in an order, cut into steps."""
        rows = feed.train.batch_rows
        if rows:
            return [order[start : start + rows] for start in range(0, len(order), rows)]
        limit = feed.train.batch_tokens or 1
        steps: list[list[int]] = []
        used = limit
        for row in order:
            size = len(feed.examples[row].token_T)
            if used + size > limit:
                steps.append([])
                used = 0
            steps[-1].append(row)
            used += size
        return steps
