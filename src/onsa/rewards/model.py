"""Model: a reward model that was trained on preferences."""

from __future__ import annotations

from typing import ClassVar

from onsa.rewards.base import Access, Grader, Reward


class Model(Reward):
    """A reward model's score: a run of the task ``preference`` with the objective ``reward``.

    run: the run, as ``onsa list`` shows it.
    """

    kind: ClassVar[str] = "model"
    run: str

    def open(self, access: Access) -> Grader:
        return access.scorer(self.run)
