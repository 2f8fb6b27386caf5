"""Convert: every common shape of a conversation as one list of ``{role, content, …}`` messages.

These are read: chat rows (``messages``, each message with an optional ``weight`` of 0 or 1), ShareGPT (``from`` and
``value``), prompt and completion (texts or lists of messages), and any of the lists as JSON text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from onsa.spec.errors import unknown

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
OPENING = ("system", "developer")
SPOKEN = ("text", "refusal")  # parts of a message that are words
SHAREGPT = {"human": "user", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant", "model": "assistant"}
SHAREGPT |= {"observation": "tool", "function_call": "assistant", "function_response": "tool"}
Fault = tuple[str, dict[str, Any]]  # a message code and its values


def check_messages(value: Any) -> Fault | None:
    """Why a list of messages (or its JSON text) cannot be trained on, as a message code and its values, or ``None``."""
    return check_shape(value, answered=True) or _nothing_learnt([_message(message) for message in _parsed(value)])


def check_shape(value: Any, answered: bool = False) -> Fault | None:
    """As :func:`check_messages`, but for a conversation that waits for its answer: anyone may speak last, and the
    assistant may have said nothing, unless it is ``answered``."""
    if value is None or value in ("", [], ()) or (isinstance(value, str) and not value.strip()):
        return "messages-empty", {}
    try:
        messages = _parsed(value)
    except (ValueError, RecursionError) as error:
        return "messages-not-json", {"reason": str(error)}
    if not isinstance(messages, list | tuple):
        return "messages-not-list", {"type": type(messages).__name__}
    if not messages:
        return "messages-empty", {}
    for place, message in enumerate(messages, 1):
        fault = _message_fault(message, place, answered)
        if fault:
            return fault
    return None


def check_conversation(values: Mapping[str, Any], answered: bool = True) -> Fault | None:
    """As :func:`check_messages`, for values by role: ``messages``, or ``prompt`` and ``completion``; and ``tools``.

    Args:
        answered: there has to be an answer to learn; without, a row may wait for one.
    """
    check = check_messages if answered else check_shape
    try:
        to_tools(values.get("tools"))
    except ValueError as error:
        return "tools-refused", {"reason": str(error)}
    if "prompt" not in values:
        return check(values.get("messages"))
    for role in ("prompt", "completion") if answered else ("prompt",):
        text = values.get(role)
        if not text or (isinstance(text, str) and not text.strip()):
            return "prompt-incomplete", {"role": role}
    try:
        messages = to_messages(values)
    except ValueError:
        return "messages-not-list", {"type": type(values["prompt"]).__name__}
    return check(messages)


def to_messages(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The conversation of a row's values by role: ``messages``, or ``prompt`` and (where there is one) ``completion``.

    The text of ``system`` comes first, unless the conversation opens with a system message of its own.
    Each message is a new dict with ``role`` and ``content`` (text parts joined; ``""`` where only tools are called)
    and whatever else it has (``weight``, ``name``, ``tool_calls``, ``tool_call_id``), null fields aside.

    Raises:
        ValueError: the values hold no list of messages; :func:`check_conversation` tells beforehand.
    """
    if "prompt" not in values:
        listed = _listed(values.get("messages"))
    else:
        answer = values.get("completion")
        completion = [] if answer is None or answer == "" else _listed(answer, "assistant")
        listed = [*_listed(values["prompt"], "user"), *completion]
    messages = [_message(message) for message in listed]
    system = values.get("system")
    told = system is not None and system == system and str(system).strip()  # NaN is unlike itself
    if told and not (messages and messages[0]["role"] in OPENING):
        messages.insert(0, {"role": "system", "content": str(system)})
    return messages


def transcript(messages: Sequence[Mapping[str, Any]]) -> str:
    """Messages as one text: who says what, a line each."""
    return "\n".join(f"{message['role']}: {message.get('content') or ''}" for message in messages)


def to_tools(value: Any) -> list[dict[str, Any]] | None:
    """The tools that a conversation may call: a list of descriptions, or its JSON text; ``None`` where there are none.

    Raises:
        ValueError: neither.
    """
    if value is None or value in ("", []):
        return None
    tools = json.loads(value) if isinstance(value, str) else value
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError("not a list of objects")
    return tools


def _parsed(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def _listed(value: Any, role: str | None = None) -> Sequence[Any]:
    """A value as a list of messages; a text that is no JSON list is one message of this role, if one is given."""
    if isinstance(value, str):
        try:
            parsed = json.loads(value) if value.lstrip().startswith("[") else None
        except (ValueError, RecursionError):
            parsed = None
        if isinstance(parsed, list) and all(isinstance(message, dict) for message in parsed) and parsed:
            return parsed
        if role:
            return [{"role": role, "content": value}]
    if isinstance(value, list | tuple) and all(isinstance(message, Mapping) for message in value):
        return value
    raise ValueError(f"{type(value).__name__} is no list of messages")


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """One message in the common shape; unknown roles stay as they are."""
    fields = {name: value for name, value in message.items() if value is not None}
    if "role" not in fields and "from" in fields:
        role = str(fields.pop("from"))
        fields = {"role": SHAREGPT.get(role, role), "content": fields.pop("value", None), **fields}
    content = fields.get("content")
    if isinstance(content, list | tuple):
        parts = (part for part in content if isinstance(part, Mapping))
        content = "".join(str(part.get("text") or part.get("refusal") or "") for part in parts)
    return {**fields, "role": fields.get("role"), "content": "" if content is None else content}


def _nothing_learnt(messages: Sequence[Mapping[str, Any]]) -> Fault | None:
    """Why well-formed messages hold no answer to learn, or ``None``."""
    if messages[-1]["role"] != "assistant":
        answers = any(message["role"] == "assistant" for message in messages)
        return ("messages-end" if answers else "messages-no-answer"), {"role": messages[-1]["role"]}
    if not any(message["role"] == "assistant" and message.get("weight", 1) for message in messages):
        return "messages-weightless", {}
    return None


def _message_fault(message: Any, place: int, answered: bool) -> Fault | None:
    if not isinstance(message, Mapping):
        return "message-not-object", {"place": place, "type": type(message).__name__}
    fields = _message(message)
    role = fields["role"]
    if role is None:
        return "message-no-role", {"place": place, "choices": ", ".join(ROLES)}
    if role not in ROLES:
        return "message-role", {"place": place, **unknown("message-role", str(role), ROLES).values}
    parts = message.get("content", message.get("value"))
    if isinstance(parts, list | tuple):
        kinds = [part.get("type", "?") if isinstance(part, Mapping) else type(part).__name__ for part in parts]
        other = next((kind for kind in kinds if kind not in SPOKEN), None)
        if other is not None:
            return "message-part", {"place": place, "type": other}
    elif parts is not None and not isinstance(parts, str):
        return "message-content-type", {"place": place, "type": type(parts).__name__}
    calls = fields.get("tool_calls") or fields.get("function_call")
    # A tool may answer with nothing, a system message may be left blank, and a call needs no words.
    silent = role == "user" or (role == "assistant" and answered and not calls)
    if not fields["content"].strip() and silent:
        return "message-no-content", {"place": place, "role": role}
    if fields.get("weight", 1) not in (0, 1):
        return "message-weight", {"place": place, "value": fields["weight"]}
    return None
