"""Multi: several rewards, put together by a formula."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator
from pydantic_core import PydanticCustomError

from onsa.rewards.base import Access, Grader, Reward, Sample
from onsa.spec import axes
from onsa.spec.component import Component

FUNCTIONS: dict[str, Callable[..., float]] = {
    "min": min,
    "max": max,
    "abs": abs,
    "floor": math.floor,
    "ceil": math.ceil,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "log": math.log,
}
ALLOWED = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.USub, ast.Load, ast.Name)


class Multi(Reward):
    """What a formula makes of other rewards' numbers, each times its weight.

    graders: rewards by name.
    calculate_output: a formula of these names and of numbers, with ``+ - * /``, ``min``, ``max``, ``abs``, ``floor``,
        ``ceil``, ``exp``, ``sqrt`` and ``log``.
    """

    kind: ClassVar[str] = "multi"
    graders: Annotated[dict[str, SerializeAsAny[Component]], BeforeValidator(axes.named("reward")), Field(min_length=1)]
    calculate_output: str

    @model_validator(mode="after")
    def _computable(self) -> Multi:
        try:
            for node in ast.walk(ast.parse(self.calculate_output, mode="eval")):
                _allow(node, self.graders)
        except (SyntaxError, ValueError) as error:
            values = {"formula": self.calculate_output, "reason": str(error), "names": ", ".join(self.graders)}
            raise PydanticCustomError("formula-refused", "formula-refused", values) from None
        return self

    @property
    def rewards(self) -> dict[str, Reward]:
        """What it puts together."""
        return {name: one for name, one in self.graders.items() if isinstance(one, Reward)}

    def together(self, given: Mapping[str, float]) -> float:
        """What the formula makes of the rewards' numbers for one answer."""
        values = {name: self.rewards[name].weight * number for name, number in given.items()}
        known = {"__builtins__": {}, **FUNCTIONS, **values}
        return float(eval(self.calculate_output, known))  # nothing is in it but what is allowed

    def open(self, access: Access) -> Grader:
        opened = {name: reward.open(access) for name, reward in self.rewards.items()}

        def grade(samples: Sequence[Sample]) -> list[float]:
            graded = {name: grader(samples) for name, grader in opened.items()}
            answers = range(len(samples))
            return [self.together({name: given[index] for name, given in graded.items()}) for index in answers]

        return grade


def _allow(node: ast.AST, names: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: a formula may not have this in it.
    """
    called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS
    number = isinstance(node, ast.Constant) and type(node.value) in (int, float)
    known = not isinstance(node, ast.Name) or node.id in names or node.id in FUNCTIONS
    plain = called and isinstance(node, ast.Call) and not node.keywords
    if not known or not (isinstance(node, ALLOWED) or number or plain):
        raise ValueError(ast.unparse(node))
