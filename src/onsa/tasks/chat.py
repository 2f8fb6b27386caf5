"""Chat: conversations in which the assistant's turns are to be learned, under any chat template."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from onsa.data.convert import check_conversation, to_messages, to_tools
from onsa.data.profile import Look, Profile
from onsa.data.table import Row
from onsa.models.batch import Example
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
        messages = next((c for c in profile.columns if c.look is Look.MESSAGES), None)
        if messages is not None:
            columns = {"messages": messages.name}
            if profile.named("tools"):
                columns["tools"] = "tools"
            return Match(columns, 1.0, [("why-messages", {"column": messages.name})])
        prompt, answer = profile.named(*PROMPT_NAMES), profile.named(*ANSWER_NAMES)
        if prompt is None or answer is None or answer.look is Look.NUMBER:
            return None
        columns = {"prompt": prompt.name, "completion": answer.name}
        if profile.named("system"):
            columns["system"] = "system"
        return Match(columns, 0.8, [("why-pairs", {"prompt": prompt.name, "answer": answer.name})])

    def problem_of(self, row: Row) -> tuple[str, dict[str, Any]] | None:
        return check_conversation(row.values)

    def messages(self, row: Row) -> list[dict[str, Any]]:
        """The row as a list of messages, with the task's system message where it has none."""
        messages = to_messages(row.values)
        if self.system and messages and messages[0].get("role") not in ("system", "developer"):
            messages = [{"role": "system", "content": self.system}, *messages]
        return messages

    def inputs(self, row: Row) -> str:
        before = self.messages(row)[:-1]
        return "\n".join(f"{message['role']}: {message.get('content') or ''}" for message in before)

    def answer(self, row: Row) -> str:
        return str(self.messages(row)[-1].get("content") or "")

    def from_text(self, text: str) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": text}]}

    def encode(self, row: Row, tokenizer: Any, max_length: int) -> Example:
        """Tokens of the whole conversation, weight on what the assistant says and on the end of its turn.

        Raises:
            DataError: the template changes earlier turns when later ones come, so that no turn can be told apart.
        """
        messages = self.messages(row)
        settings = _settings(row)
        text = _render(tokenizer, messages, settings)
        spans = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant" or message.get("weight", 1) == 0:
                continue
            before = _render(tokenizer, messages[:index], settings, add_generation_prompt=True)
            through = _render(tokenizer, messages[: index + 1], settings)
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
        messages = self.messages(row)
        if messages and messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        text = _render(tokenizer, messages, _settings(row), add_generation_prompt=True)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _settings(row: Row) -> dict[str, Any]:
    tools = to_tools(row.values.get("tools"))
    return {"tools": tools} if tools else {}


def _render(tokenizer: Any, messages: list[dict[str, Any]], settings: dict[str, Any], **more: Any) -> str:
    plain = [{name: value for name, value in message.items() if name != "weight"} for message in messages]
    if not plain:
        return ""
    return str(tokenizer.apply_chat_template(plain, tokenize=False, **settings, **more))
