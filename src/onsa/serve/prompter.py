"""Prompter: the tokens that a language task's answers are generated from, and generated tokens as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from onsa.data.dataset import nfkc
from onsa.data.table import Row
from onsa.spec.errors import DataError, Problem
from onsa.spec.messages import say
from onsa.tasks.base import Task, TokenTask

Given = str | dict[str, Any] | Row


@dataclass(frozen=True)
class Prompter:
    """How a model is asked.

    max_length: tokens of a prompt; a longer one loses its beginning.
    stops: the tokens with which an answer ends.
    normalise: how the texts that the model learnt from were normalised.
    """

    task: TokenTask
    tokenizer: Any
    max_length: int
    stops: tuple[int, ...]
    normalise: Literal["none", "nfkc"] = "none"

    def prompt(self, row: Row) -> list[int]:
        """The tokens that an answer to a row is generated from, however many."""
        tokenizer = self.tokenizer
        # A text that is only begun has no tokens: bases without a token for the beginning use that for the end.
        starts = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        return self.task.prompt(row, tokenizer) or [token for token in starts if token is not None][:1]

    def prompts(self, rows: Sequence[Row]) -> list[list[int]]:
        """The tokens that answers to some rows are generated from."""
        return [self.prompt(row)[-self.max_length :] for row in rows]

    def said(self, tokens: Sequence[int]) -> str:
        """Generated tokens as text."""
        return said(self.tokenizer, tokens)


def stops(generation: Any, task: TokenTask, tokenizer: Any) -> tuple[int, ...]:
    """The tokens with which answers end, for a base's ``GenerationConfig`` and a task."""
    ends = generation.eos_token_id  # a number, a list of them, or nothing
    more = ends if isinstance(ends, list) else [] if ends is None else [ends]
    return tuple(sorted(task.stop_ids(tokenizer).union(more)))


def said(tokenizer: Any, tokens: Sequence[int]) -> str:
    """Generated tokens as text."""
    return str(tokenizer.decode(tokens, skip_special_tokens=True)).strip()


def as_row(task: Task, normalise: str, given: Given) -> Row:
    """A row as in training."""
    values = task.from_text(given) if isinstance(given, str) else given
    row = values if isinstance(values, Row) else Row(values, "", 0)
    return replace(row, values=nfkc(row.values)) if normalise == "nfkc" else row


def checked(task: Task, normalise: str, given: Given, number: int) -> Row:
    """A row that can be answered.

    Raises:
        DataError: it cannot; it is named by its number.
    """
    row = as_row(task, normalise, given)
    fault = task.unanswerable(row)
    if fault:
        code, named = fault
        words = {"row": number, "reason": say(code, **named), "remedy": say(f"{code}.fix", **named)}
        raise DataError(Problem("row-unanswerable", words, row.file or None, row.line or None))
    return row
