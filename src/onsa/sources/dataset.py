"""Dataset: the training rows, shuffled anew each epoch; the order is a function of (seed, epoch) alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from onsa.models.batch import Example
from onsa.sources.base import Cursor, Feed, Source


class Dataset(Source):
    """Rows of a data set in batches of tokens or of rows.

    shuffle: draw the rows of each epoch in a new order; off keeps the file's order.
    """

    kind: ClassVar[str] = "dataset"
    shuffle: bool = True

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
        order = np.arange(len(feed.examples))
        if self.shuffle:
            order = np.random.default_rng([feed.seed, epoch]).permutation(order)
        rows = feed.train.batch_rows
        if rows:
            return [order[start : start + rows].tolist() for start in range(0, len(order), rows)]
        limit = feed.train.batch_tokens or 1
        steps: list[list[int]] = []
        used = limit
        for row in order.tolist():
            size = len(feed.examples[row].token_T)
            if used + size > limit:
                steps.append([])
                used = 0
            steps[-1].append(row)
            used += size
        return steps
