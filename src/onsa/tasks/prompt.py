"""Prompt: prompts to which the policy itself gives answers, which are then graded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from onsa.data.compare import PROMPTS
from onsa.data.convert import OPENING, check_conversation, to_messages, to_tools, transcript
from onsa.data.profile import Look, Profile
from onsa.data.table import Row
from onsa.models.batch import Example
from onsa.models.templates import render, turn_end
from onsa.spec.component import Form
from onsa.tasks.base import Match, TokenTask


class Prompt(TokenTask):
    """Prompts without answers. A row's other columns come along, for what grades the answers.

    system: a system message for prompts that have none.
    """

    kind: ClassVar[str] = "prompt"
    objectives: ClassVar[tuple[str, ...]] = ("grpo", "dr-grpo", "gspo", "rloo", "ppo")
    roles: ClassVar[dict[str, bool]] = {
        "messages": False,
        "prompt": False,
        "completion": False,
        "system": False,
        "tools": False,
    }
    further: ClassVar[bool] = True
    neutral: ClassVar[frozenset[str]] = frozenset({"length"})

    system: str | None = None

    @classmethod
    def recognise(cls, profile: Profile) -> Match | None:
        beside = {role: column.name for role in ("system", "tools") if (column := profile.named(role))}
        prompt = profile.named(*PROMPTS)
        if prompt is not None:
            return Match({"prompt": prompt.name, **beside}, 0.2, [("why-prompts", {"column": prompt.name})])
        messages = next((c for c in profile.columns if c.look is Look.MESSAGES), None)
        if messages is None:
            return None
        return Match({"messages": messages.name, **beside}, 0.2, [("why-prompts", {"column": messages.name})])

    @property
    def provides(self) -> Form:
        return Form.PROMPTED

    @property
    def headline(self) -> str:
        return "reward"

    @property
    def measures(self) -> tuple[str, ...]:
        return ("reward", "ended", "length")

    @property
    def talks(self) -> bool:
        return True

    def problem_of(self, row: Row) -> tuple[str, dict[str, Any]] | None:
        fault = check_conversation(row.values, answered=False)
        return fault or (None if self.prompt_messages(row) else ("messages-empty", {}))

    def unanswerable(self, row: Row) -> tuple[str, dict[str, Any]] | None:
        return self.problem_of(row)

    def prompt_messages(self, row: Row) -> list[dict[str, Any]]:
        """The conversation up to what is to be answered: an answer that a row ends with is left out."""
        messages = to_messages({role: value for role, value in row.values.items() if role in self.roles})
        if messages and messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        if self.system and messages and messages[0].get("role") not in OPENING:
            messages = [{"role": "system", "content": self.system}, *messages]
        return messages

    def inputs(self, row: Row) -> str:
        # As the task chat has it, so that the same prompts fall on the same sides of a split.
        return transcript(self.prompt_messages(row))

    def answer(self, row: Row) -> str:
        return ""

    def from_text(self, text: str) -> dict[str, Any]:
        return {"prompt": text}

    @property
    def last_is_answer(self) -> bool:
        return True

    def from_messages(self, messages: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {"messages": list(messages)}

    def encode(self, row: Row, tokenizer: Any, max_length: int) -> Example:
        """The prompt's tokens; of one that is too long, the end."""
        found = self.prompt(row, tokenizer)
        return Example(np.asarray(found[-max_length:], np.int32), cut=max(0, len(found) - max_length))

    def prompt(self, row: Row, tokenizer: Any) -> list[int]:
        if not tokenizer.chat_template:
            return list(tokenizer(self.inputs(row))["input_ids"])
        messages, tools = self.prompt_messages(row), to_tools(row.values.get("tools"))
        text = render(tokenizer, messages, tools, (row.file, row.line), add_generation_prompt=True)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    def stop_ids(self, tokenizer: Any) -> frozenset[int]:
        return super().stop_ids(tokenizer) | (turn_end(tokenizer) if tokenizer.chat_template else frozenset())
