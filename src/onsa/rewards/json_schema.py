"""JSON schema: is an answer JSON of the expected shape, with the right values?"""

from __future__ import annotations

import json
from typing import Any, ClassVar

from jsonschema import Draft202012Validator, SchemaError
from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from onsa.rewards.base import OneByOne, Sample, filled


class JsonSchema(OneByOne):
    """What an answer earns, of 1 in all: ``parses`` where it is JSON, ``shaped`` where it keeps to the schema as well,
    and the rest for the share of ``values`` that are right.

    shape: a JSON schema (draft 2020-12).
    values: the text that a key of the answer should have, a template over ``item``, by key.
    parses, shaped: parts of the reward; without ``values`` an answer that keeps to the schema earns 1.
    """

    kind: ClassVar[str] = "json-schema"
    shape: dict[str, Any]
    values: dict[str, str] = Field(default_factory=dict)
    parses: float = Field(default=0.2, ge=0, le=1)
    shaped: float = Field(default=0.3, ge=0, le=1)

    @field_validator("shape")
    @classmethod
    def _readable(cls, value: dict[str, Any]) -> dict[str, Any]:
        try:
            Draft202012Validator.check_schema(value)
        except SchemaError as error:
            raise PydanticCustomError("schema-refused", "schema-refused", {"reason": error.message}) from None
        return value

    def score(self, sample: Sample) -> float:
        try:
            given = json.loads(sample.answer)
        except (ValueError, RecursionError):
            return 0.0
        if not Draft202012Validator(self.shape).is_valid(given):
            return self.parses
        wanted = {key: filled(template, sample).strip() for key, template in self.values.items()}
        right = [isinstance(given, dict) and _text(given.get(key)) == text for key, text in wanted.items()]
        part = self.parses + self.shaped if right else 1.0
        return part + (1 - part) * sum(right) / max(1, len(right))


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else json.dumps(value)
