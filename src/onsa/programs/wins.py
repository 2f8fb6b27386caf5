"""Wins: on how many held-out prompts a judge prefers the tuned model's answer to the base's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np

from onsa.data.table import Row
from onsa.programs.feedback import Candidate
from onsa.programs.judge import open_judge
from onsa.programs.prepare import Prepared
from onsa.tasks.base import Outcome, TokenTask

RATE = "win_rate"


def wins(prepared: Prepared, rows: Sequence[Row], tuned: Sequence[str], base: Sequence[str]) -> Outcome:
    """Of each prompt 1 where the tuned model's answer is preferred, 0 where the base's is, 1/2 where neither is.

    An empty answer is worse than any other.
    """
    task, ref = cast(TokenTask, prepared.task), prepared.recipe.evaluate.judge
    assert ref is not None, "a judge was asked for"
    judge, won = open_judge(ref), []
    for row, new, old in zip(rows, tuned, base, strict=True):
        there, before = new.strip(), old.strip()
        likely = 0.5 + 0.5 * (bool(there) - bool(before))
        if there and before and there != before:
            likely, _ = judge.first(Candidate(task.prompt_messages(row), task.inputs(row), (new, old)))
        won.append(1.0 if likely > 0.5 else 0.0 if likely < 0.5 else 0.5)
    ones = np.ones(len(won))
    return Outcome(np.arange(len(won)), ones, ones, np.asarray(won)[:, None])


def rate(outcome: Outcome) -> dict[str, float]:
    """The share of prompts that are won."""
    assert outcome.output_RC is not None
    return {RATE: float(outcome.output_RC.mean())}
