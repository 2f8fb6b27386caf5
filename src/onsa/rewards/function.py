"""Function: a Python function of an installed package, named by an entry point."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, ClassVar

from onsa.rewards.base import Access, Grader, Reward
from onsa.spec.errors import RecipeError, unknown

GROUP = "onsa.functions"


class Function(Reward):
    """What a function gives for ``(sample, item)``: the answer as ``output_text``, and the row by column names.

    entry: the function's name among the entry points ``onsa.functions``.
    """

    kind: ClassVar[str] = "function"
    entry: str

    def open(self, access: Access) -> Grader:
        points = {point.name: point for point in entry_points(group=GROUP)}
        if self.entry not in points:
            raise RecipeError(unknown("function-unknown", self.entry, points, key="source.reward.entry"))
        call: Callable[[dict[str, Any], dict[str, Any]], float] = points[self.entry].load()
        return lambda samples: [call({"output_text": each.answer}, dict(each.item)) for each in samples]
