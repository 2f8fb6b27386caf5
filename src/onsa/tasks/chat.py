"""Chat: conversations in which the assistant's turns are to be learned, under any chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from onsa.data.convert import OPENING, check_conversation, to_messages, to_tools, transcript
from onsa.data.profile import Look, Profile
from onsa.data.table import Row
from onsa.models.batch import Example
from onsa.models.templates import render, turn_end
from onsa.spec.errors import DataError
from onsa.tasks.base import Match, TokenTask

PROMPT_NAMES = ("prompt", "question", "instruction", "input", "user", "query", "質問", "入力", "指示")
ANSWER_NAMES = ("completion", "answer", "response", "output", "assistant", "reply", "回答", "出力", "応答", "答え")


class Chat(TokenTask):
    """Answer in a conversation. Only the assistant's turns train, those of weight 0 left out.

    system: a system message for conversations that have none.
    """

    kind: ClassVar[str] = "chat"
    roles: ClassVar[dict[str, bool]] = {
        "messages": False,
        "tools": False,
        "prompt": False,
        "completion": False,
        "system": False,
    }

    system: str | None = None

    @classmethod
    def recognise(cls, profile: Profile) -> Match | None:
        beside = {role: column.name for role in ("system", "tools") if (column := profile.named(role))}
        messages = next((c for c in profile.columns if c.look is Look.MESSAGES), None)
        if messages is not None:
            return Match({"messages": messages.name, **beside}, 1.0, [("why-messages", {"column": messages.name})])
        prompt, answer = profile.named(*PROMPT_NAMES), profile.named(*ANSWER_NAMES)
        if prompt is None or answer is None or answer.look is Look.NUMBER:
            return None
        columns = {"prompt": prompt.name, "completion": answer.name, **beside}
        return Match(columns, 0.8, [("why-pairs", {"prompt": prompt.name, "answer": answer.name})])

    def problem_of(self, row: Row) -> tuple[str, dict[str, Any]] | None:
        return check_conversation(row.values)

    def unanswerable(self, row: Row) -> tuple[str, dict[str, Any]] | None:
        fault = check_conversation(row.values, answered=False)
        return fault or (None if self._turns(row)[0] else ("messages-empty", {}))

    def messages(self, row: Row) -> list[dict[str, Any]]:
        """The row as a list of messages, with the task's system message where it has none."""
        messages = to_messages(row.values)
        if self.system and messages and messages[0].get("role") not in OPENING:
            messages = [{"role": "system", "content": self.system}, *messages]
        return messages

    def inputs(self, row: Row) -> str:
        before, _ = self._turns(row)
        return transcript(before)

    def answer(self, row: Row) -> str:
        _, answer = self._turns(row)
        return str(answer.get("content") or "")

    def _turns(self, row: Row) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The conversation up to its last answer, and that; a conversation that waits for one is all asked."""
        messages = self.messages(row)
        answered = bool(messages) and messages[-1]["role"] == "assistant"
        return (messages[:-1], messages[-1]) if answered else (messages, {})

    def from_text(self, text: str) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": text}]}

    @property
    def talks(self) -> bool:
        return True

    @property
    def last_is_answer(self) -> bool:
        return True

    def from_messages(self, messages: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {"messages": list(messages)}

    def prompt_messages(self, row: Row) -> list[dict[str, Any]]:
        return self._turns(row)[0]

    def encode(self, row: Row, tokenizer: Any, max_length: int) -> Example:
        """Tokens of the whole conversation, weight on what the assistant says and on the end of its turn.

        Raises:
            DataError: the template refuses the conversation, or changes earlier turns when later ones come, so that no
                turn can be told apart.
        """
        messages = self.messages(row)
        text = self._rendered(row, tokenizer, messages)
        spans = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant" or message.get("weight", 1) == 0:
                continue
            before = self._rendered(row, tokenizer, messages[:index], add_generation_prompt=True)
            through = self._rendered(row, tokenizer, messages[: index + 1])
            if not (through.startswith(before) and text.startswith(through.rstrip())):
                raise DataError.of("template-rewrites", file=row.file, line=row.line, turn=index + 1)
            # The newline after the end-of-turn token is the template's, not the assistant's.
            spans.append((len(before), len(through.rstrip())))
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        token_T = np.asarray(encoded["input_ids"], np.int32)
        offset_T2 = np.asarray(encoded["offset_mapping"]).reshape(-1, 2)
        weight_T = np.zeros(len(token_T), np.float32)
        for start, end in spans:
            weight_T[(offset_T2[:, 0] >= start) & (offset_T2[:, 1] <= end) & (offset_T2[:, 1] > offset_T2[:, 0])] = 1
        return Example(token_T[:max_length], weight_T[:max_length], cut=max(0, len(token_T) - max_length))

    def prompt(self, row: Row, tokenizer: Any) -> list[int]:
        text = self._rendered(row, tokenizer, self.prompt_messages(row), add_generation_prompt=True)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    def stop_ids(self, tokenizer: Any) -> frozenset[int]:
        """The end of a text, and the special token with which the template closes an assistant's turn."""
        return super().stop_ids(tokenizer) | turn_end(tokenizer)

    def _rendered(self, row: Row, tokenizer: Any, messages: list[dict[str, Any]], **more: Any) -> str:
        return render(tokenizer, messages, to_tools(row.values.get("tools")), (row.file, row.line), **more)
