"""String check: is an answer the expected text, or is that in it?"""

from __future__ import annotations

from typing import ClassVar, Literal

from onsa.rewards.base import ANSWER, OneByOne, Sample, filled


class StringCheck(OneByOne):
    """1 where the check holds, else 0.

    input: what is checked, a template over ``sample`` and ``item``.
    reference: what it is held against, a template as well.
    operation: ``eq`` (the same), ``ne`` (not the same), ``like`` (contains it), ``ilike`` (in capitals or not).
    """

    kind: ClassVar[str] = "string-check"
    input: str = ANSWER
    reference: str
    operation: Literal["eq", "ne", "like", "ilike"] = "eq"

    def score(self, sample: Sample) -> float:
        given, wanted = filled(self.input, sample), filled(self.reference, sample)
        if self.operation == "eq":
            return float(given == wanted)
        if self.operation == "ne":
            return float(given != wanted)
        if self.operation == "like":
            return float(wanted in given)
        return float(wanted.lower() in given.lower())
