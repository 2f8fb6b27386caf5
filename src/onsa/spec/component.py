"""Component: what a recipe is made of, and the forms in which examples come."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer, model_validator


class Form(StrEnum):
    """What an example is: a task provides one form, an objective reads one, or several."""

    LABELLED = "labelled"  # an input and a class
    MULTILABELLED = "multilabelled"  # an input and a set of classes
    SCORED = "scored"  # an input and a number
    TOKENS = "tokens"  # tokens, some of which are to be predicted from those before them
    RANKED = "ranked"  # a prompt and answers, each of which is to be given a score, and their ranks
    PREFERRED = "preferred"  # a prompt and answers in tokens, and their ranks
    JUDGED = "judged"  # a prompt and an answer in tokens, which is good or bad
    PROMPTED = "prompted"  # a prompt, to which the policy itself gives answers


class Section(BaseModel):
    """A part of a recipe: immutable, and nothing but the keys it declares.

    A bare string is short for the field named by ``shorthand``: ``data: reviews.csv`` is ``data: {path: reviews.csv}``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=False, allow_inf_nan=False)
    shorthand: ClassVar[str | None] = None

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        return {cls.shorthand: value} if cls.shorthand and isinstance(value, str) else value


class Component(Section):
    """One kind on an axis; its file's name (hyphens for underscores) is ``kind``."""

    kind: ClassVar[str]

    @model_serializer(mode="wrap")
    def _with_kind(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {"kind": self.kind, **handler(self)}
