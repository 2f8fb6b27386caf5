"""Judge: a model that talks, and says which of two answers is the better one (RLAIF; Lee et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import ClassVar

from onsa.rewards.base import Access, Grader, Reward, Sample


class Judge(Reward):
    """How likely an answer is better than the next one to the same prompt, and than the one before it, on the mean.

    Each two are shown in both orders. An answer without others beside it earns 1/2.

    run: a finished run that talks, or is a reward model; or a model behind an OpenAI-compatible API, as ``MODEL@URL``.
    rubric: what the judge goes by; a built-in constitution if not given.
    """

    kind: ClassVar[str] = "judge"
    run: str
    rubric: str | None = None

    def open(self, access: Access) -> Grader:
        likely = access.judge(self.run, self.rubric)

        def grade(samples: Sequence[Sample]) -> list[float]:
            found: list[float] = []
            for _, each in groupby(samples, key=lambda sample: (sample.place, sample.text)):
                group = list(each)
                count = len(group)
                if count == 1:
                    found.append(0.5)
                    continue
                ahead = [likely(group[index], group[(index + 1) % count]) for index in range(count if count > 2 else 1)]
                if count == 2:
                    found += [ahead[0], 1 - ahead[0]]
                else:
                    found += [(ahead[index] + 1 - ahead[index - 1]) / 2 for index in range(count)]
            return found

        return grade
