"""Python: what a function in the recipe itself gives, run where it can do nothing but compute."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field

from onsa.rewards.base import Access, Grader, Reward, Sample, shown
from onsa.spec.errors import RecipeError
from onsa.spec.sandbox import Sandbox, SandboxError


class Python(Reward):
    """What ``grade(sample, item)`` of some source gives: as a grader of OpenAI's has it.

    source: defines the function; it may import the parts of Python's library that compute, and reach no file, network
        or process. An answer has 10 seconds and 512 MB.
    """

    kind: ClassVar[str] = "python"
    source: Annotated[str, Field(min_length=1)]

    def open(self, access: Access) -> Grader:
        try:
            sandbox = Sandbox(self.source)
        except SandboxError as error:
            raise RecipeError.of("python-refused", key="source.reward.source", reason=str(error)) from None

        def grade(samples: Sequence[Sample]) -> list[float]:
            items = [json.loads(json.dumps(dict(sample.item), default=str)) for sample in samples]
            return [sandbox.call(shown(sample), item) for sample, item in zip(samples, items, strict=True)]

        return grade
