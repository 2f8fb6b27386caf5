"""Compare: every common shape of a preference is read as a prompt, its answers and their ranks; faults are named."""

from __future__ import annotations

import json
from typing import Any

import pytest

from onsa.data.compare import Comparison, check_comparison, to_comparison
from onsa.spec.messages import say


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def says(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


PLAIN = Comparison([user("why?")], ([says("so")], [says("no")]), (0.0, 1.0))
TALK = [user("hello"), says("hi"), user("why?")]
SHAPES: dict[str, tuple[dict[str, Any], Comparison]] = {
    "texts": ({"prompt": "why?", "chosen": "so", "rejected": "no"}, PLAIN),
    "messages": ({"prompt": [user("why?")], "chosen": [says("so")], "rejected": [says("no")]}, PLAIN),
    "json": ({"prompt": json.dumps([user("why?")]), "chosen": json.dumps([says("so")]), "rejected": "no"}, PLAIN),
    "whole conversations": (
        {"chosen": [*TALK, says("so")], "rejected": [*TALK, says("no")]},
        Comparison(TALK, PLAIN.answers, PLAIN.ranks),
    ),
    "whole conversations beside their prompt": (
        {"prompt": "why?", "chosen": [user("why?"), says("so")], "rejected": [user("why?"), says("no")]},
        PLAIN,
    ),
    "OpenAI's": (
        {
            "prompt": {"messages": [user("why?")], "tools": [{"name": "look"}], "parallel_tool_calls": True},
            "chosen": [says("so")],
            "rejected": [says("no")],
        },
        Comparison(PLAIN.prompt, PLAIN.answers, PLAIN.ranks, [{"name": "look"}]),
    ),
    "a tie": (
        {"prompt": "why?", "chosen": "so", "rejected": "no", "tie": True},
        Comparison(PLAIN.prompt, PLAIN.answers, (0.0, 0.0)),
    ),
    "a ranking": (
        {"prompt": "why?", "answers": ["so", "no", "never"]},
        Comparison(PLAIN.prompt, (*PLAIN.answers, [says("never")]), (0.0, 1.0, 2.0)),
    ),
    "ranks": (
        {"prompt": "why?", "answers": '["so", "no", "never"]', "ranks": [3, 1, 1]},
        Comparison(PLAIN.prompt, (*PLAIN.answers, [says("never")]), (2.0, 0.0, 0.0)),
    ),
    "a good answer": (
        {"prompt": "why?", "completion": "so", "label": True},
        Comparison(PLAIN.prompt, PLAIN.answers[:1], (0.0,)),
    ),
    "a bad answer": (
        {"prompt": "why?", "completion": "so", "label": "0"},
        Comparison(PLAIN.prompt, PLAIN.answers[:1], (1.0,)),
    ),
    "a prompt that looks like JSON": (
        {"prompt": '{"a": 1}', "chosen": "[so]", "rejected": "no"},
        Comparison([user('{"a": 1}')], ([says("[so]")], [says("no")]), (0.0, 1.0)),
    ),
    "a system message": (
        {"prompt": "why?", "chosen": "so", "rejected": "no", "system": "be brief"},
        Comparison([{"role": "system", "content": "be brief"}, *PLAIN.prompt], PLAIN.answers, PLAIN.ranks),
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_is_read(shape: str) -> None:
    values, wanted = SHAPES[shape]
    assert check_comparison(values) is None
    assert to_comparison(values) == wanted


FAULTS: list[tuple[str, dict[str, Any]]] = [
    ("prompt-missing", {"chosen": "so", "rejected": "no"}),
    ("prompt-missing", {"prompt": "  ", "chosen": "so", "rejected": "no"}),
    ("answer-missing", {"prompt": "why?", "chosen": "so"}),
    ("answer-missing", {"prompt": "why?", "chosen": "so", "rejected": float("nan")}),
    ("answers-same", {"prompt": "why?", "chosen": "so", "rejected": " so\n"}),
    ("prompts-differ", {"chosen": [user("why?"), says("so")], "rejected": [user("how?"), says("no")]}),
    ("prompts-differ", {"prompt": "how?", "chosen": [user("why?"), says("so")], "rejected": "no"}),
    ("answer-unspoken", {"prompt": "why?", "chosen": [user("so")], "rejected": "no"}),
    ("answer-type", {"prompt": "why?", "chosen": 3, "rejected": "no"}),
    ("message-role", {"prompt": "why?", "chosen": [{"role": "asistant", "content": "so"}], "rejected": "no"}),
    ("answers-few", {"prompt": "why?", "answers": ["so"]}),
    ("answers-few", {"prompt": "why?", "answers": "so"}),
    ("ranks-refused", {"prompt": "why?", "answers": ["so", "no"], "ranks": ["first", "second"]}),
    ("ranks-count", {"prompt": "why?", "answers": ["so", "no"], "ranks": [1]}),
    ("label-neither", {"prompt": "why?", "completion": "so", "label": "maybe"}),
    ("label-neither", {"prompt": "why?", "completion": "so"}),
    ("tools-refused", {"prompt": "why?", "chosen": "so", "rejected": "no", "tools": "look"}),
]


@pytest.mark.parametrize(("code", "values"), FAULTS)
def test_a_fault_is_named(code: str, values: dict[str, Any]) -> None:
    fault = check_comparison(values)
    assert fault is not None and fault[0] == code
    assert say(code, **fault[1]) and say(f"{code}.fix", **fault[1])


def test_a_row_may_wait_for_its_answers() -> None:
    assert to_comparison({"prompt": "why?"}, answered=False) == Comparison(PLAIN.prompt, (), ())
    assert to_comparison({"prompt": "why?", "completion": "so"}, answered=False).answers == PLAIN.answers[:1]
    assert check_comparison({"prompt": ""}, answered=False) == ("prompt-missing", {})
