"""Score model: a model that talks, and is asked for a number."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field

from onsa.rewards.base import Access, Grader, Reward, Sample, filled
from onsa.spec.component import Section

NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


class Message(Section):
    """A message to the model.

    role: who says it.
    content: what is said, a template over ``sample`` and ``item``.
    """

    role: str = "user"
    content: str


class Limits(Section):
    """How the model answers.

    max_completions_tokens: the longest answer, in tokens.
    """

    max_completions_tokens: Annotated[int, Field(ge=1)] = 64


class ScoreModel(Reward):
    """The first number in what a model says, within a range; its lower end where it names none.

    model: a finished run that talks, or a model behind an OpenAI-compatible API, as ``MODEL@URL``.
    input: what it is asked.
    range: the least and the greatest number.
    sampling_params: how it answers; the likeliest answer is taken.
    """

    kind: ClassVar[str] = "score-model"
    model: str
    input: Annotated[tuple[Message, ...], Field(min_length=1)]
    range: tuple[float, float] = (0.0, 1.0)
    sampling_params: Limits = Limits()

    def open(self, access: Access) -> Grader:
        speak = access.speaker(self.model, self.sampling_params.max_completions_tokens)

        def grade(samples: Sequence[Sample]) -> list[float]:
            return [self._number(speak(self._asked(sample))) for sample in samples]

        return grade

    def _asked(self, sample: Sample) -> list[dict[str, str]]:
        return [{"role": one.role, "content": filled(one.content, sample)} for one in self.input]

    def _number(self, said: str) -> float:
        found, (low, high) = NUMBER.search(said), self.range
        return low if found is None else min(max(float(found[0]), low), high)
