"""Grammar: what an answer may be, by a JSON schema, as limits to each next token (Geng et al. 2023), by llguidance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onsa.spec.errors import DataError

ANY_OBJECT = {"type": "object"}  # what ``json_object`` asks for


class Grammars:
    """The grammars of one tokenizer."""

    def __init__(self, tokenizer: Any, stops: Sequence[int]) -> None:
        from llguidance.hf import from_tokenizer

        self._tokenizer = from_tokenizer(tokenizer, eos_token=list(stops) or None)

    def of_schema(self, schema: Mapping[str, Any]) -> Limit:
        """Answers that a JSON schema allows.

        Raises:
            DataError: the schema is none, or asks for what cannot be limited so.
        """
        from llguidance import LLMatcher

        try:
            grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides={"whitespace_flexible": False})
        except (ValueError, TypeError) as error:
            raise DataError.of("schema-unusable", key="response_format", reason=str(error)) from None
        matcher = LLMatcher(self._tokenizer, grammar)
        if matcher.is_error():
            reason = matcher.get_error().splitlines()[0]
            raise DataError.of("schema-unusable", key="response_format", reason=reason)
        return Limit(matcher, schema)

    def bytes_of(self, token: int) -> bytes:
        """What a token stands for; parts of letters among them. Special tokens stand for nothing."""
        return b"" if self._tokenizer.is_special_token(token) else bytes(self._tokenizer.decode_bytes([token]))


class Limit:
    """What may be said next, packed, and what was said."""

    def __init__(self, matcher: Any, schema: Mapping[str, Any]) -> None:
        self._matcher, self.schema = matcher, schema

    def mask(self) -> NDArray[np.uint8]:
        return np.frombuffer(self._matcher.compute_bitmask(), np.uint8)

    def take(self, token: int) -> None:
        self._matcher.consume_token(token)
