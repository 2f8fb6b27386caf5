"""Tools: functions that a model may call, in OpenAI's words, and what it says as calls.

A model that was taught to call writes ``<tool_call>{"name": …, "arguments": {…}}</tool_call>``. Where a call is wanted,
whatever the model was taught, its answer is limited to one: a JSON object of that form.
"""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass
from typing import Any

from onsa.app.api.errors import RefusedError
from onsa.spec.messages import say
from onsa.spec.texts import begun

OPENING = "<tool_call>"
WRITTEN = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|$)", re.DOTALL)
NONE, AUTO, REQUIRED = "none", "auto", "required"
Object = dict[str, Any]


@dataclass(frozen=True)
class Tooling:
    """What a request says about tools. shown: to the model. schema: of an answer that has to be a call.

    legacy: the request, and so the answer, has the older fields for one function.
    """

    shown: list[Object] | None = None
    schema: Object | None = None
    legacy: bool = False

    def message(self, text: str) -> tuple[Object, list[Object]]:
        """The content and calls of an answer's text, and the calls."""
        if self.shown is None:
            return {"content": text}, []
        found = [text] if self.schema else WRITTEN.findall(text)
        calls = [call for one in found for call in _calls(one)]
        if not calls:
            return {"content": text}, []
        if self.legacy:
            return {"content": None, "function_call": calls[0]["function"]}, []
        before = "" if self.schema else text.partition(OPENING)[0].strip()
        return {"content": before or None, "tool_calls": calls}, calls

    def ready(self, text: str) -> int:
        """How many letters of an answer's text, so far, cannot belong to a call."""
        if self.shown is None:
            return len(text)
        if self.schema:
            return 0
        found = text.find(OPENING)
        return found if found >= 0 else len(text) - begun(text, OPENING)


def tooling(
    tools: list[Object] | None,
    choice: str | Object | None,
    functions: list[Object] | None,
    call: str | Object | None,
) -> Tooling:
    """What a request says about tools, in the newer fields or the older ones.

    Raises:
        RefusedError: a tool that is no function, or a choice of one that is not there.
    """
    legacy = tools is None and functions is not None
    offered: list[Object] = (
        [{"type": "function", "function": one} for one in functions or []] if legacy else tools or []
    )
    wanted = call if legacy else choice
    for tool in offered:
        function = tool.get("function")
        described = isinstance(function, dict) and isinstance(function.get("name"), str)
        if tool.get("type") != "function" or not described:
            raise RefusedError(400, say("api-tool"), "tools", "invalid_value")
    if not offered or wanted == NONE:
        return Tooling()
    if wanted in (None, AUTO):
        return Tooling(offered, None, legacy)
    if isinstance(wanted, dict) and wanted.get("type") == "allowed_tools":
        return tooling(*_allowed(offered, wanted.get("allowed_tools")), None, None)
    named = _named(wanted)
    meant = [tool for tool in offered if wanted == REQUIRED or tool["function"]["name"] == named]
    if not meant:
        raise RefusedError(400, say("api-tool-choice"), "tool_choice", "invalid_value")
    return Tooling(offered, {"anyOf": [_call_schema(tool["function"]) for tool in meant]}, legacy)


def _allowed(offered: list[Object], said: Any) -> tuple[list[Object], str]:
    """The tools that a choice leaves, and whether one of them has to be called."""
    said = said if isinstance(said, dict) else {}
    names = {_named(tool) for tool in said.get("tools") or []}
    left = [tool for tool in offered if tool["function"]["name"] in names]
    if not left:
        raise RefusedError(400, say("api-tool-choice"), "tool_choice", "invalid_value")
    return left, REQUIRED if said.get("mode") == REQUIRED else AUTO


def _named(choice: Any) -> str | None:
    if not isinstance(choice, dict):
        return None
    inner = choice.get("function", choice)
    return inner.get("name") if isinstance(inner, dict) else None


def _call_schema(function: Object) -> Object:
    properties = {"name": {"const": function["name"]}, "arguments": function.get("parameters") or {"type": "object"}}
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


def _calls(text: str) -> list[Object]:
    """The calls that a model wrote as JSON: one, or a list."""
    try:
        said = json.loads(text)
    except ValueError:
        return []
    found = said if isinstance(said, list) else [said]
    return [
        {
            "id": f"call_{secrets.token_hex(12)}",
            "type": "function",
            "function": {"name": one["name"], "arguments": _text(one.get("arguments", {}))},
        }
        for one in found
        if isinstance(one, dict) and isinstance(one.get("name"), str)
    ]


def _text(arguments: Any) -> str:
    """Arguments as JSON text, as which a model may have written them already."""
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
