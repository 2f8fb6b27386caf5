"""Conversations in every shape, and what is wrong with them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from onsa.data.convert import check_conversation, check_messages, to_messages, to_tools
from onsa.spec.messages import say

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello."}
CHAT = [USER, ANSWER]


@pytest.mark.parametrize(
    "values",
    [
        {"messages": CHAT},
        {"messages": json.dumps(CHAT)},
        {"messages": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]},
        {"messages": [{**USER, "name": None, "tool_calls": None}, {**ANSWER, "name": None}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]},
                ANSWER,
            ]
        },
        {"prompt": "Hi", "completion": "Hello."},
        {"prompt": [USER], "completion": [ANSWER]},
        {"prompt": json.dumps([USER]), "completion": "Hello."},
    ],
)
def test_every_shape_is_the_same_conversation(values: dict[str, Any]) -> None:
    assert check_conversation(values) is None
    assert to_messages(values) == CHAT


def test_a_text_that_looks_like_a_list_is_a_text() -> None:
    values = {"prompt": "[1, 2", "completion": "[1]"}
    assert check_conversation(values) is None
    assert [message["content"] for message in to_messages(values)] == ["[1, 2", "[1]"]


def test_weights_calls_and_tools_are_kept() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}], "weight": 0}
    messages = [
        {"role": "system", "content": ""},
        USER,
        call,
        {"role": "tool", "content": "", "tool_call_id": "1"},
        ANSWER,
    ]
    tools = [{"type": "function"}]
    assert check_conversation({"messages": messages, "tools": json.dumps(tools)}) is None
    assert to_messages({"messages": messages})[2] == {**call, "content": ""}
    assert to_tools(json.dumps(tools)) == tools == to_tools(tools)
    assert to_tools(None) is None and to_tools("") is None


def test_the_row_is_left_as_it_was() -> None:
    values = {"messages": [dict(USER), dict(ANSWER)]}
    to_messages(values)[0]["content"] = "changed"
    assert values["messages"][0] == USER


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (None, "messages-empty"),
        ("", "messages-empty"),
        (" ", "messages-empty"),
        ([], "messages-empty"),
        ("[]", "messages-empty"),
        ("Hi", "messages-not-json"),
        ("[" * 100_000, "messages-not-json"),
        (3, "messages-not-list"),
        ('{"role": "user"}', "messages-not-list"),
        ([*CHAT, USER], "messages-end"),
        ([USER], "messages-no-answer"),
        ([USER, {**ANSWER, "weight": 0}], "messages-weightless"),
        ([USER, "Hello."], "message-not-object"),
        ([{"content": "Hi"}, ANSWER], "message-no-role"),
        ([{"role": "asistant", "content": "Hi"}], "message-role"),
        ([{"role": {}, "content": "Hi"}], "message-role"),
        ([{"role": "user", "content": [{"type": "image_url"}]}, ANSWER], "message-part"),
        ([{"role": "user", "content": ["Hi"]}, ANSWER], "message-part"),
        ([{"role": "user", "content": 3}, ANSWER], "message-content-type"),
        ([{"role": "user"}, ANSWER], "message-no-content"),
        ([USER, {"role": "assistant", "content": " "}], "message-no-content"),
        ([USER, {**ANSWER, "weight": 0.5}], "message-weight"),
        ([USER, {**ANSWER, "weight": "1"}], "message-weight"),
    ],
)
def test_faults(value: Any, code: str) -> None:
    fault = check_messages(value)
    assert fault is not None and fault[0] == code
    for language in ("en", "ja"):
        assert say(code, language, **fault[1]) and say(f"{code}.fix", language, **fault[1])


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({}, "messages-empty"),
        ({"prompt": "Hi"}, "prompt-incomplete"),
        ({"prompt": " ", "completion": "a"}, "prompt-incomplete"),
        ({"prompt": 3, "completion": "a"}, "messages-not-list"),
        ({"prompt": [USER], "completion": [USER]}, "messages-no-answer"),
        ({"messages": CHAT, "tools": "{"}, "tools-refused"),
        ({"messages": CHAT, "tools": [1]}, "tools-refused"),
    ],
)
def test_faults_of_rows(values: dict[str, Any], code: str) -> None:
    fault = check_conversation(values)
    assert fault is not None and fault[0] == code
    assert say(code, "ja", **fault[1])


def test_the_nearest_role_is_named() -> None:
    fault = check_messages([{"role": "asistant", "content": "Hi"}])
    assert fault is not None and fault[1]["near"] == "assistant"


@pytest.mark.parametrize("value", [None, 3, "Hi", [1]])
def test_what_is_no_conversation_is_not_made_one(value: Any) -> None:
    with pytest.raises(ValueError, match="no list of messages"):
        to_messages({"messages": value})


def test_a_prompt_may_wait_for_its_completion() -> None:
    for values in ({"prompt": "Hi"}, {"prompt": "Hi", "completion": None}, {"prompt": "Hi", "completion": ""}):
        assert to_messages(values) == [USER]
        assert check_conversation(values, answered=False) is None
        assert check_conversation(values) == ("prompt-incomplete", {"role": "completion"})
    assert check_conversation({"messages": [USER]}, answered=False) is None
    assert check_conversation({"messages": [{"role": "user"}]}, answered=False) is not None


def test_a_system_column_comes_first_where_there_is_none() -> None:
    system = {"role": "system", "content": "Be kind."}
    for values in ({"messages": CHAT}, {"prompt": "Hi", "completion": "Hello."}):
        assert to_messages({**values, "system": "Be kind."}) == [system, *CHAT]
        for blank in (None, "", " ", float("nan")):
            assert to_messages({**values, "system": blank}) == CHAT
    assert to_messages({"messages": [system, *CHAT], "system": "Be brief."}) == [system, *CHAT]
