"""Rollouts: answers that the policy itself draws as it is then, graded when they are there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field, SerializeAsAny

from onsa.models.batch import Example, Made, Sizes, sizes
from onsa.sources.base import Cursor, Feed, Rows, Source
from onsa.spec import axes
from onsa.spec.component import Component, Form


class Rollouts(Source):
    """A group of answers to each prompt. An answer is a function of seed, step and prompt, given the policy.

    reward: what grades answers: one kind or several; the sum of their weighted numbers is an answer's reward.
    group: answers to each prompt.
    prompts: prompts that are answered at once, before the policy learns from the answers; those of one step if not
        given.
    passes: how often it learns from them.
    max_new_tokens: the longest answer, in tokens.
    temperature: logits are divided by it, here and where the policy learns.
    top_p: the likeliest tokens that have this probability together are drawn from.
    """

    kind: ClassVar[str] = "rollouts"
    makes: ClassVar[frozenset[Form]] = frozenset({Form.PROMPTED})
    reward: Annotated[tuple[SerializeAsAny[Component], ...], axes.several("reward"), Field(min_length=1)]
    group: Annotated[int, Field(ge=1)] = 8
    prompts: Annotated[int, Field(ge=1)] | None = None
    passes: Annotated[int, Field(ge=1)] = 1
    max_new_tokens: Annotated[int, Field(ge=1)] = 64
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0

    def total(self, feed: Feed) -> int:
        steps = sum(len(parts) for epoch in range(feed.train.epochs or 1) for _, parts in self._rounds(feed, epoch))
        return min(steps, feed.train.max_steps or steps)

    def an_epoch(self, feed: Feed) -> int:
        return sum(len(parts) for _, parts in self._rounds(feed, 0))

    def steps(self, feed: Feed, at: Cursor) -> Iterator[tuple[list[Example], Cursor]]:
        total, step = self.total(feed), at.step
        for epoch in range(at.epoch, feed.train.epochs or 1):
            done = at.index if epoch == at.epoch else 0
            rounds, index = self._rounds(feed, epoch), 0
            for number, (rows_R, parts) in enumerate(rounds):
                answered: list[Example] | None = None
                for place, part_R in enumerate(parts):
                    index += 1
                    if index <= done:
                        continue
                    if step == total:
                        return
                    if answered is None:
                        answered = self._answered(feed, (epoch, number), rows_R, again=place > 0, often=len(parts) > 1)
                    step += 1
                    last = number + 1 == len(rounds) and place + 1 == len(parts)
                    yield [answered[row] for row in part_R], Cursor(step, epoch + last, 0 if last else index)

    @property
    def room(self) -> int:
        return self.max_new_tokens

    @property
    def cooling(self) -> float:
        return self.temperature

    def seen(self, examples: Sequence[Example]) -> Sequence[Example]:
        return Stand(examples, self.group, self.max_new_tokens)

    def told(self, examples: Sequence[Example]) -> dict[str, float]:
        names = examples[0].graded
        return {name: float(np.concatenate([example.graded[name] for example in examples]).mean()) for name in names}

    def _rounds(self, feed: Feed, epoch: int) -> list[tuple[Rows, list[Rows]]]:
        """The prompts that are answered at once, and which of them each step learns from, by their places."""
        order_R, length_R = feed.order(epoch), sizes(self.seen(feed.examples)).length_R
        if self.prompts is None:
            rounds = feed.cut(order_R, length_R)
            return [(rows_R, [np.arange(len(rows_R))] * self.passes) for rows_R in rounds]
        found = []
        for number, rows_R in enumerate(np.split(order_R, range(self.prompts, len(order_R), self.prompts))):
            dice = np.random.default_rng([feed.seed, epoch, number])
            passes = [feed.cut(dice.permutation(len(rows_R)), length_R[rows_R]) for _ in range(self.passes)]
            found.append((rows_R, list(chain(*passes))))
        return found

    def _answered(self, feed: Feed, known: tuple[int, int], rows_R: Rows, again: bool, often: bool) -> list[Example]:
        """A round's prompts with their answers.

        Args:
            known: what the round's chances are drawn from, beside the seed.
            again: they were answered before, and the policy goes on learning from that.
            often: the policy learns from them in more than one step.
        """
        rows = rows_R.tolist()
        prompts = [feed.examples[row] for row in rows]
        if feed.desk is None:
            return list(self.seen(prompts))
        if again:
            return feed.desk.again()
        sequences = [np.random.SeedSequence([feed.seed, *known, row]) for row in rows]
        seeds = [[int(seed) for seed in one.generate_state(self.group, np.uint64)] for one in sequences]
        return feed.desk.answer(prompts, seeds, often)


class Stand(Made):
    """Rows with answers of the greatest length, in place of answers that are not there yet."""

    def __init__(self, prompts: Sequence[Example], group: int, most: int) -> None:
        self.prompts, self.group, self.most = prompts, group, most
        known, more = sizes(prompts), group * most
        supervised_R = np.full(len(prompts), more)
        self.sizes = Sizes(known.length_R + more, supervised_R, known.cut_R, known.row_R)

    def __len__(self) -> int:
        return len(self.prompts)

    def at(self, index: int) -> Example:
        prompt = self.prompts[index]
        parts = (len(prompt.token_T), *[self.most] * self.group)
        row = replace(
            prompt,
            token_T=np.resize(prompt.token_T, sum(parts)),
            weight_T=(np.arange(sum(parts)) >= parts[0]).astype(np.float32),
            target=np.zeros(self.group, np.float32),
            part_P=parts,
        )
        turns_A = np.where(np.arange(self.group) % 2 == 0, 1.0, -1.0)  # so that there is a gradient
        return row.telling(**{"advantage": row.spread(turns_A), "return": row.spread(turns_A)})
