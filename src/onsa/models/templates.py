"""Templates: conversations as the text that a base was taught to read, by its tokenizer's chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from onsa.models.load import first_line
from onsa.spec.errors import DataError

MARK = "onsa"  # an answer to look for in what a template makes of it
Message = Mapping[str, Any]
# How bases that know of tools are mostly told of them (Hermes; Qwen's template); the service reads calls of this form.
TOOLS = (
    "You may call functions. These are there, each as a JSON object:\n<tools>\n{tools}\n</tools>\n"
    'To call one, answer with its name and arguments:\n<tool_call>\n{{"name": …, "arguments": …}}\n</tool_call>'
)
CALL, RESULT = "<tool_call>\n{call}\n</tool_call>", "<tool_response>\n{result}\n</tool_response>"


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
    plain, more["tools"] = _known(plain, tools, str(tokenizer.chat_template))
    try:
        return str(tokenizer.apply_chat_template(plain, tokenize=False, **more))
    except Exception as error:  # a template is a program of the model's author: it can raise anything
        file, line = place
        reason = first_line(error).rstrip(".")
        raise DataError.of("template-fails", file=file or None, line=line or None, reason=reason) from error


def _known(
    messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, template: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """Messages and tools as a template knows them: what it has no place for stands in the text."""
    if "developer" not in template:  # a newer word for the same
        messages = [{**one, "role": "system"} if one.get("role") == "developer" else one for one in messages]
    called = [_called(message) for message in messages]
    messages = called if "tool_calls" in template else [_in_words(message) for message in called]
    if tools and "tools" not in template:
        told = TOOLS.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
        first, rest = (messages[0], messages[1:]) if messages[0].get("role") == "system" else ({}, messages)
        words = "\n\n".join(part for part in (first.get("content"), told) if part)
        messages, tools = [{**first, "role": "system", "content": words}, *rest], None
    return messages, tools or None


def _called(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose calls have arguments that are objects, and stand where they stand now."""
    calls = message.get("tool_calls") or []
    if not calls and message.get("function_call"):
        calls = [{"type": "function", "function": message["function_call"]}]
    if not calls:
        return message
    rest = {name: value for name, value in message.items() if name != "function_call"}
    return {**rest, "tool_calls": [{**call, "function": _parsed(call.get("function") or {})} for call in calls]}


def _parsed(function: Mapping[str, Any]) -> dict[str, Any]:
    given = function.get("arguments")
    try:
        return {**function, "arguments": json.loads(given) if isinstance(given, str) else given}
    except ValueError:
        return dict(function)


def _in_words(message: dict[str, Any]) -> dict[str, Any]:
    """A message with its calls, or a tool's answer, as text."""
    words = str(message.get("content") or "")
    if message.get("role") in ("tool", "function"):
        return {"role": "user", "content": RESULT.format(result=words)}
    calls = message.get("tool_calls")
    if not calls:
        return message
    said = [{name: call["function"].get(name) for name in ("name", "arguments")} for call in calls]
    told = [CALL.format(call=json.dumps(call, ensure_ascii=False)) for call in said]
    rest = {name: value for name, value in message.items() if name != "tool_calls"}
    return {**rest, "content": "\n".join([words, *told] if words else told)}


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
