"""Templates: conversations as the text that a base was taught to read, by its tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onsa.models.load import first_line
from onsa.spec.errors import DataError

MARK = "onsa"  # an answer to look for in what a template makes of it
Message = Mapping[str, Any]


def render(
    tokenizer: Any,
    messages: Sequence[Message],
    tools: list[dict[str, Any]] | None = None,
    place: tuple[str, int] = ("", 0),
    **more: Any,
) -> str:
    """Some messages under a chat template.

    Args:
        place: file and line that the messages come from.

    Raises:
        DataError: the template refuses them.
    """
    plain = [{name: value for name, value in message.items() if name != "weight"} for message in messages]
    if not plain:
        return ""
    if "developer" not in str(tokenizer.chat_template):  # a newer word for the same
        plain = [{**one, "role": "system"} if one.get("role") == "developer" else one for one in plain]
    if tools:
        more["tools"] = tools
    try:
        return str(tokenizer.apply_chat_template(plain, tokenize=False, **more))
    except Exception as error:  # a template is a program of the model's author: it can raise anything
        file, line = place
        reason = first_line(error).rstrip(".")
        raise DataError.of("template-fails", file=file or None, line=line or None, reason=reason) from error


def turn_end(tokenizer: Any) -> frozenset[int]:
    """The special token with which a template closes an assistant's turn, where there is one."""
    talk = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": MARK}]
    try:
        _, said, closing = render(tokenizer, talk).rpartition(MARK)
    except DataError:  # a template that takes no such talk has been tried on the rows that it was trained on
        return frozenset()
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    tokens = tokenizer(closing, add_special_tokens=False)["input_ids"] if said else []
    return frozenset([token for token in tokens if token in special][:1])
