"""Length: an answer's length against what it should be."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from onsa.rewards.base import OneByOne, Sample


class Length(OneByOne):
    """0 within the bounds; beyond them minus the share by which an answer is too short or too long, -1 at least.

    least, most: the bounds, both inclusive; without ``most`` there is no upper one.
    unit: what is counted.
    """

    kind: ClassVar[str] = "length"
    least: Annotated[int, Field(ge=0)] = 1
    most: Annotated[int, Field(ge=1)] | None = None
    unit: Literal["tokens", "words", "characters"] = "tokens"

    def score(self, sample: Sample) -> float:
        counts = {"tokens": sample.tokens, "words": len(sample.answer.split()), "characters": len(sample.answer)}
        length = counts[self.unit]
        if length < self.least:
            return length / self.least - 1
        if self.most is not None and length > self.most:
            return -min(1.0, length / self.most - 1)
        return 0.0
