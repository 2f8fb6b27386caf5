"""Text generation: continue a prompt, or learn plain text."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from onsa.data.profile import Look, Profile
from onsa.data.table import Row
from onsa.models.batch import Example
from onsa.tasks.base import Match, TokenTask, text_of


class TextGeneration(TokenTask):
    """Continue a text. With ``prompt`` and ``completion`` only the completion trains; with ``text`` every token does.

    No template is put around the text: what stands in the file is what the model sees, and an end-of-sequence token.
    A completion without a prompt is a beginning. A plain text has no answer apart from itself: asked, it is continued.
    """

    kind: ClassVar[str] = "text-generation"
    roles: ClassVar[dict[str, bool]] = {"text": False, "prompt": False, "completion": False}

    @classmethod
    def recognise(cls, profile: Profile) -> Match | None:
        prompt, completion = profile.named("prompt"), profile.named("completion")
        if prompt and completion:  # the names that prompt/completion files use; a chat model would rather chat
            return Match({"prompt": prompt.name, "completion": completion.name}, 0.7)
        texts = [column for column in profile.columns if column.look is Look.TEXT]
        if not texts:
            return None
        text = max(texts, key=lambda column: column.mean_length)
        return Match({"text": text.name}, 0.3, [("why-plain-text", {"column": text.name})])

    def problem_of(self, row: Row) -> tuple[str, dict[str, Any]] | None:
        role = "completion" if "completion" in row.values else "text"
        return None if text_of(row.values.get(role)).strip() else ("row-empty", {"role": role})

    def unanswerable(self, row: Row) -> tuple[str, dict[str, Any]] | None:
        return None if row.values.keys() & self.roles.keys() else ("row-empty", {"role": "prompt"})

    def inputs(self, row: Row) -> str:
        """The prompt; of a plain text, all of it."""
        plain = "text" in row.values and "completion" not in row.values
        return text_of(row.values.get("text" if plain else "prompt"))

    def answer(self, row: Row) -> str:
        return text_of(row.values.get("completion"))

    def asks(self, row: Row) -> bool:
        return "completion" in row.values

    def from_text(self, text: str) -> dict[str, Any]:
        return {"prompt": text}

    def encode(self, row: Row, tokenizer: Any, max_length: int) -> Example:
        if "completion" in row.values:
            head, tail = self.prompt(row, tokenizer), self.answer(row)
        else:
            head, tail = [], self.inputs(row)
        # Prompt and completion are tokenised apart: at inference the boundary stands exactly there.
        body = tokenizer(tail, add_special_tokens=not head, verbose=False)["input_ids"]
        if tokenizer.eos_token_id is not None and body[-1:] != [tokenizer.eos_token_id]:
            body = [*body, tokenizer.eos_token_id]
        token_T = np.asarray([*head, *body], np.int32)
        weight_T = np.asarray([0.0] * len(head) + [1.0] * len(body), np.float32)
        return Example(token_T[:max_length], weight_T[:max_length], cut=max(0, len(token_T) - max_length))

    def prompt(self, row: Row, tokenizer: Any) -> list[int]:
        return list(tokenizer(self.inputs(row))["input_ids"])
