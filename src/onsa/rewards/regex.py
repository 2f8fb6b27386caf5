"""Regex: does a pattern match in an answer?"""

from __future__ import annotations

import re
from typing import ClassVar

from pydantic import field_validator
from pydantic_core import PydanticCustomError

from onsa.rewards.base import ANSWER, OneByOne, Sample, filled


class Regex(OneByOne):
    """1 where the pattern is found, else 0.

    pattern: a regular expression; ``^`` and ``$`` are the answer's ends.
    input: what is searched, a template over ``sample`` and ``item``.
    """

    kind: ClassVar[str] = "regex"
    pattern: str
    input: str = ANSWER

    @field_validator("pattern")
    @classmethod
    def _readable(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise PydanticCustomError("pattern-refused", "pattern-refused", {"reason": str(error)}) from None
        return value

    def score(self, sample: Sample) -> float:
        return float(re.search(self.pattern, filled(self.input, sample)) is not None)
